"""What the backend on a GPU must keep to and no result on a CPU shows: one stream for all of its work, and Faiss's limits."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import streamer.dedup.calibration
from streamer.dedup import device, device_cells
from streamer.dedup.calibration import Calibration
from streamer.dedup.index import Resident
from streamer.dedup.ivf import IvfIndex
from streamer.dedup.sketch import width_for
from streamer.dedup.store import WinnerStore
from tests.dedup.test_index import fill, near, unit

DIM, TAU = 192, 0.9


@pytest.fixture
def index(monkeypatch):
    """On torch's CPU device, which is told that it has a stream."""
    for name, value in (("CHUNK", 2_048), ("OVERLAP", 4_096)):
        monkeypatch.setattr(device, name, value)
    monkeypatch.setattr(device_cells, "BEST", 2)
    monkeypatch.setattr(streamer.dedup.calibration, "WINDOW", 200)
    backend = type("SmallDeviceBackend", (device.DeviceBackend,), {"merge_rows": 512, "list_rows": 64})("cpu")
    backend._stream = "ours"
    return lambda: IvfIndex(WinnerStore(DIM), TAU, backend, Calibration(), train_at=700)


def test_all_work_is_queued_on_one_stream(index, monkeypatch):
    """Elsewhere it would be read before it is written, or wait for the model's next batch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    current = [None]

    @contextmanager
    def stream(chosen):
        current.append(chosen)
        yield
        current.pop()

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            done[current[-1]].append(func)
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(torch.cuda, "stream", stream)
    rng, done = np.random.default_rng(0), {None: [], "ours": []}
    vectors = unit(rng, 2_000, DIM)
    queries = near(rng, vectors[::5].astype(np.float64), rng.uniform(TAU, 1, 400))
    there = Resident(torch.tensor(queries).float(), np.arange(400))
    with Watched():
        first, second = index(), index()
        for at in (0, 1_000):
            fill(first, vectors[at : at + 1_000], np.arange(at, at + 1_000), offset=at)
        for resident in (None, there):
            assert (first.search(queries, resident).winners >= 0).mean() > 0.9
        assert first._calibration.rho < 1, "or nothing was learnt"
        second.store.append(vectors, second.store.view.sketch.codes(vectors.astype(np.float32)), np.arange(2_000), 0, np.arange(2_000))
        second.restore(first.state())
        assert (second.search(queries).winners >= 0).mean() > 0.9
    assert second.gauges()["base_vectors"] > 1_000
    assert done[None] == []
    assert len(done["ours"]) > 100


def test_a_search_stays_within_what_faiss_takes_and_keeps():
    for probes, k in ((device_cells.PROBES, device_cells.BEST), (1, device_cells.MOST)):
        assert max(probes, k) <= 2_048
        for dim in (128, 512, 1_024, 4_096):
            assert device_cells.LOOKS * probes * (4 * width_for(dim) + 12 * k) < device_cells.TEMPORARY
    assert device_cells.LOOKS < 65_536
