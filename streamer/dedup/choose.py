"""The index for a device. Faiss and torch are imported only where one needs them."""

from __future__ import annotations

from streamer.dedup.backend import Backend
from streamer.dedup.index import WinnerIndex
from streamer.dedup.store import WinnerStore
from streamer.errors import ConfigError


def open_index(
    dim: int, threshold: float, device: str, calibrated: bool = False, train_at: int | None = None
) -> WinnerIndex:
    """An empty index for ``cpu`` or ``cuda:N``. ``train_at``: winners at which it makes its first
    cells; None: the backend's own.

    Raises ConfigError, see `backend_of`.
    """
    from streamer.dedup.calibration import Calibration
    from streamer.dedup.ivf import IvfIndex

    return IvfIndex(
        WinnerStore(dim),
        threshold,
        backend_of(device),
        Calibration() if calibrated else None,
        train_at,
    )


def backend_of(device: str) -> Backend:
    """For ``cpu`` or ``cuda:N``. Raises ConfigError where the package for GPUs is missing."""
    if device == "cpu":
        from streamer.dedup.host import HostBackend

        return HostBackend()
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        raise ConfigError(
            f"dedup.device: {device}: the Faiss that is installed is the one for CPUs. Set dedup.device: cpu, or make an environment with the one for "
            "GPUs: pip install -c constraints/gpu.txt '.[gpu]' in streamer's folder (README.md)"
        )
    from streamer.dedup.device import DeviceBackend

    return DeviceBackend(device)
