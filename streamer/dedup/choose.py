"""Which index a device gets. Faiss and torch are imported only where one needs them."""

from __future__ import annotations

from streamer.dedup.index import WinnerIndex
from streamer.dedup.store import WinnerStore


def open_index(dim: int, threshold: float, device: str, calibrated: bool = False, train_at: int | None = None) -> WinnerIndex:
    """An empty index for ``cpu`` or ``cuda:N``. ``train_at``: winners at which it makes its first cells; None: a default."""
    if device == "cpu":
        from streamer.dedup.calibration import Calibration
        from streamer.dedup.ivf import TRAIN_AT, IvfIndex

        return IvfIndex(WinnerStore(dim), threshold, Calibration() if calibrated else None, TRAIN_AT if train_at is None else train_at)
    from streamer.dedup.device import DeviceIndex

    return DeviceIndex(WinnerStore(dim), threshold, device)
