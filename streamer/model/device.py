"""Where batches are computed: images on the host or the device → packed float32 rows on the host.
The device thread only, but for `Pending.result`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from streamer.errors import ConfigError
from streamer.records import F32, U8, OnDevice

Pixels = U8 | OnDevice
"""(H, W, 3) uint8; a tensor is on the device, and complete."""
Compute = Callable[[torch.Tensor], torch.Tensor]
"""(n, H, W, 3) uint8 on the device → (n, columns) float32 on the device."""


@dataclass(frozen=True)
class Pending:
    """Rows on their way to the host."""

    rows: torch.Tensor
    ready: torch.cuda.Event | None = None
    """None: they have arrived."""
    resident: torch.Tensor | None = None
    """The same in the GPU's memory; to be read once they have arrived."""

    def result(self) -> F32:
        """(n, columns) float32. Blocks until they have arrived, without holding the GIL."""
        if self.ready is not None:
            self.ready.synchronize()
        rows: F32 = self.rows.numpy()
        return rows


class Line(ABC):
    """The way to a device and back."""

    @abstractmethod
    def start(self, pixels: Sequence[Pixels], compute: Compute) -> Pending:
        """n ≥ 1 images of one shape, each on the host or on the device. Raises what ``compute``
        raises; after an out-of-memory error the line can be used on."""

    @abstractmethod
    def recover(self) -> None:
        """After an out-of-memory error: waits for what is in flight and frees what can be freed.
        May block for as long as that takes."""


class HostLine(Line):
    """The CPU: computed when `start` returns."""

    def start(self, pixels: Sequence[Pixels], compute: Compute) -> Pending:
        return Pending(compute(torch.from_numpy(np.stack([np.asarray(image) for image in pixels]))))

    def recover(self) -> None:
        return None  # the failed batch's memory went back to the allocator with its tensors


class _Staging:
    """One pinned buffer, and the event that says that the last copy out of it is done."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self.copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def fill(self, pixels: Sequence[U8]) -> torch.Tensor:
        """Blocks until the buffer's last copy is done; grows it when needed. → (n, H, W, 3) uint8,
        pinned."""
        self.copied.synchronize()
        shape = (len(pixels), *pixels[0].shape)
        size = int(np.prod(shape))
        if self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        staged = self._buffer[:size].view(shape)
        np.stack(pixels, out=staged.numpy())
        return staged


class CudaLine(Line):
    """One GPU. Pixels travel as uint8 out of pinned memory on a stream of their own, so that the
    next batch is staged and copied while this one computes; `start` returns once everything is
    queued. Two staging buffers: the third batch waits for the first one's copy, not its result.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._staging = (_Staging(), _Staging())
        self._turn = 0

    def start(self, pixels: Sequence[Pixels], compute: Compute) -> Pending:
        with torch.cuda.device(self._device):
            main = torch.cuda.current_stream(self._device)
            computed = compute(self._gathered(pixels, main))
            rows = torch.empty(computed.shape, dtype=computed.dtype, pin_memory=True)
            rows.copy_(computed, non_blocking=True)
            ready = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            ready.record(main)
            return Pending(rows, ready, computed)

    def _gathered(self, pixels: Sequence[Pixels], main: torch.cuda.Stream) -> torch.Tensor:
        """(n, H, W, 3) on the device, in order, for what is queued on ``main`` from now on."""
        host = [image for image in pixels if isinstance(image, np.ndarray)]
        there = [image for image in pixels if isinstance(image, torch.Tensor)]
        # Their memory is the decoder's stream's: not to be reused before main has read it
        for image in {image.untyped_storage().data_ptr(): image for image in there}.values():
            image.record_stream(main)
        if not host:
            return torch.stack(there)
        copied = self._copied(host, main)
        if not there:
            return copied
        rows = iter(copied.unbind())
        return torch.stack(
            [image if isinstance(image, torch.Tensor) else next(rows) for image in pixels]
        )

    def _copied(self, pixels: Sequence[U8], main: torch.cuda.Stream) -> torch.Tensor:
        staging = self._staging[self._turn]
        self._turn = 1 - self._turn
        staged = staging.fill(pixels)
        with torch.cuda.stream(self._copies):
            on_device = staged.to(self._device, non_blocking=True)
            staging.copied.record(self._copies)
        main.wait_event(staging.copied)
        on_device.record_stream(
            main
        )  # its memory belongs to the copy stream and must not be reused before main has read it
        return on_device

    def recover(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()


def choose(name: str, key: str = "device") -> torch.device:
    """``auto`` (the first GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``. Raises ConfigError
    for a GPU that is not there."""
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    index = torch.device("cuda" if name == "auto" else name).index or 0
    if index >= count:
        there = (
            f"there {'is' if count == 1 else 'are'} {count} here (cuda:0 … cuda:{count - 1})"
            if count
            else "PyTorch sees none here"
        )
        raise ConfigError(
            f"{key}: {name}: no such GPU; {there}. Use auto or cpu, or check the driver and that torch is a CUDA build."
        )
    return torch.device("cuda", index)


def indexed(device: torch.device) -> torch.device:
    """``cuda`` → ``cuda:0``, as `choose` names it: tensors are on ``cuda:0``, and torch takes the
    two names for two devices. Any other device as it is."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device(device.type, 0)


def memory(device: torch.device) -> dict[str, float]:
    """Bytes of a GPU's memory: ``allocated`` by tensors, ``reserved`` by PyTorch, ``free`` and
    ``total``. Empty for the CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return {"allocated": allocated, "reserved": reserved, "free": free, "total": total}


def line_for(device: torch.device) -> Line:
    return CudaLine(device) if device.type == "cuda" else HostLine()


def is_out_of_memory(error: Exception) -> bool:
    """Also for the allocators and libraries that raise a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return any(
        sign in text
        for sign in (
            "out of memory",
            "CUDA Runtime failure: '#2'",  # nvImageCodec's cudaErrorMemoryAllocation
            "can't allocate memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "CUDNN_STATUS_ALLOC_FAILED",
        )
    )


def is_of_device(error: Exception) -> bool:
    """Out of memory, or a GPU that failed and does so for whatever follows: no single image's
    fault."""
    failed = isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError)
        and any(sign in str(error) for sign in ("CUDA ", "CUBLAS_", "CUDNN_", "cuDNN"))
    )
    return failed or is_out_of_memory(error)
