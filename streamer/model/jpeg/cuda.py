"""The CUDA C of this folder, through CuPy, on PyTorch's streams and in its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import torch


@lru_cache(maxsize=32)
def kernels(source: str, names: tuple[str, ...], device: int) -> tuple[Any, ...]:
    """The functions of ``source``, a file of this folder, for one device. Any thread; compiles at
    the first call, for about a second. Raises what CuPy raises: no compiler, no driver, a fault."""
    with cupy.cuda.Device(device):
        module = cupy.RawModule(
            code=Path(__file__).with_name(source).read_text("utf-8"),
            options=("--fmad=false", "--std=c++17"),
        )
        return tuple(module.get_function(name) for name in names)


def urgent_stream(device: torch.device) -> torch.cuda.Stream:
    """Of high priority: its small kernels need not wait for the network's large ones."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@contextmanager
def launching(stream: torch.cuda.Stream) -> Iterator[None]:
    """What is launched in the body is queued on ``stream``."""
    with (
        cupy.cuda.Device(stream.device.index),
        cupy.cuda.Stream.from_external(_Handle(stream)),
    ):
        yield


def address(tensor: torch.Tensor) -> np.unsignedinteger[Any]:
    """Of a tensor's first byte, as an argument of a kernel."""
    at: np.unsignedinteger[Any] = np.uint64(tensor.data_ptr())
    return at


class _Handle:
    """CUDA's stream protocol, for versions of PyTorch whose streams do not speak it."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream


def uploaded(table: np.ndarray[Any, np.dtype[np.void]], device: torch.device) -> torch.Tensor:
    """Rows of a C struct → their bytes on ``device``. Queues on the current stream and does not
    wait; out of pinned memory, which PyTorch keeps until the copy is done."""
    return torch.from_numpy(table.view(np.uint8)).pin_memory().to(device, non_blocking=True)
