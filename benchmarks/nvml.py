"""What NVIDIA's management library says about one GPU while something runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch

EVERY_S = 0.2


class GpuWatch:
    """``with GpuWatch(device) as watch: …``; then `between`. Sees nothing on a CPU, and nothing
    without the package nvidia-ml-py."""

    def __init__(self, device: torch.device) -> None:
        self._reads = _reads(device)
        self._seen: list[tuple[float, dict[str, float]]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="nvml", daemon=True)

    def __enter__(self) -> GpuWatch:
        if self._reads:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._reads:
            self._thread.join()

    def _look(self) -> None:
        import pynvml

        while not self._done.wait(EVERY_S):
            seen = {}
            for name, read in list(self._reads.items()):
                try:
                    seen[name] = read()
                except (
                    pynvml.NVMLError
                ):  # this GPU, or this kind of virtual machine, has no such figure
                    del self._reads[name]
            self._seen.append((time.monotonic(), seen))

    def between(self, begin: float, end: float) -> dict[str, float] | None:
        """Means between two moments (monotonic seconds): shares of the time in per cent, watts,
        MB. None: nothing was seen."""
        seen = [values for at, values in self._seen if begin <= at <= end]
        if not seen:
            return None
        return {
            name: round(float(np.mean([values[name] for values in seen if name in values])), 1)
            for name in self._reads
        }


def _reads(device: torch.device) -> dict[str, Callable[[], float]]:
    if device.type != "cuda":
        return {}
    try:
        import pynvml as nvml
    except ImportError:
        return {}
    try:
        nvml.nvmlInit()
        # NVML does not know of CUDA_VISIBLE_DEVICES, so numbers may mean other GPUs to it
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        gpu: Any = nvml.nvmlDeviceGetHandleByUUID(name)
    except nvml.NVMLError:
        return {}
    return {
        "busy": lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "memory_busy": lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).memory,
        "jpeg_engine_busy": lambda: nvml.nvmlDeviceGetJpgUtilization(gpu)[0],
        "watts": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        "memory_mb": lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e6,
    }
