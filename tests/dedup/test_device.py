"""What the backend on a GPU must keep to and no answer shows: its bounds are those of the host, one
stream for all of its work, Faiss's limits."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import streamer.dedup.calibration
from streamer.dedup import device, device_cells
from streamer.dedup.arithmetic import widen
from streamer.dedup.backend import Prepared
from streamer.dedup.calibration import Calibration
from streamer.dedup.cells import Bounds, cells_of, lengths_of, needed, probe, trained
from streamer.dedup.index import Resident
from streamer.dedup.ivf import IvfIndex
from streamer.dedup.sketch import fitted, whole, width_for
from streamer.dedup.store import WinnerStore
from tests.dedup.test_index import fill, near, unit
from tests.dedup.test_ivf import clustered

DIM, TAU = 192, 0.9


@pytest.fixture
def index(monkeypatch):
    """On torch's CPU device, which is told that it has a stream."""
    for name, value in (("CHUNK", 2_048), ("OVERLAP", 4_096)):
        monkeypatch.setattr(device, name, value)
    monkeypatch.setattr(device_cells, "BEST", 2)
    monkeypatch.setattr(streamer.dedup.calibration, "WINDOW", 200)
    backend = type(
        "SmallDeviceBackend", (device.DeviceBackend,), {"merge_rows": 512, "list_rows": 64}
    )("cpu")
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
        second.store.append(
            vectors,
            second.store.view.sketch.codes(vectors.astype(np.float32)),
            np.arange(2_000),
            0,
            np.arange(2_000),
        )
        second.restore(first.state())
        assert (second.search(queries).winners >= 0).mean() > 0.9
    assert second.gauges()["base_vectors"] > 1_000
    assert done[None] == []
    assert len(done["ours"]) > 100


def test_a_search_stays_within_what_faiss_takes_and_keeps():
    for probes, k in ((device_cells.PROBES, device_cells.BEST), (1, device_cells.MOST)):
        assert max(probes, k) <= 2_048
        for dim in (128, 512, 1_024, 4_096):
            assert (
                device_cells.LOOKS * probes * (4 * width_for(dim) + 12 * k) < device_cells.TEMPORARY
            )
    assert device_cells.LOOKS < 65_536


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("rho", [1.0, 0.2])
def test_the_cells_that_are_opened_are_those_of_the_host(name, rho):
    """Which tests/dedup/test_ivf.py proves to be enough: the two differ where rounding decides, and
    nowhere else."""
    rng, tau = np.random.default_rng(3), 0.7
    vectors = clustered(rng, 6_000, DIM)
    queries = np.concatenate(
        [
            near(rng, vectors[:900].astype(np.float64), rng.uniform(tau, 1, 900)),
            clustered(rng, 300, DIM),
        ]
    )
    sketch = fitted(widen(vectors))
    codes, asked = sketch.codes(widen(vectors)), sketch.codes(widen(queries))
    cells, bounds = cells_of(sketch, trained(codes, 64)), Bounds(64)
    inside, products = cells.assign(codes)
    bounds.include(inside, products, lengths_of(codes))
    backend = device.DeviceBackend(name)
    there = backend.cells(sketch, cells.centroids, tau)
    there.add(np.arange(6_000), there.prepare(vectors, inside))
    rhos, keys = np.full(1_200, rho, np.float32), backend.queries(queries, None)
    opened = np.zeros((2, 1_200, 64), np.bool_)
    opened[0][probe(cells, bounds, asked, tau - sketch.slack, rhos)] = True
    found = there._probe(*there._codes(keys.keys), torch.tensor(rhos, device=keys.keys.device))
    opened[1][tuple(part.cpu().numpy() for part in found)] = True
    assert 0.03 < opened[0].mean() < 0.7, "or it would prove nothing"
    assert (opened[0] != opened[1]).mean() < 1e-3
    own = inside[:900]
    least = needed(cells, bounds, asked[:900], tau - sketch.slack, own)
    np.testing.assert_allclose(there.needed(keys, np.arange(900), own), least, atol=2e-3)
    assert (least > 0).any()


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_a_code_that_rounding_to_fp16_makes_smaller_is_nominated(name):
    code = np.full(
        (1, 64), 0.125 * (1 + 0.98 * 2.0**-11), np.float32
    )  # all of it rounds down to 0.125
    product = float((code.astype(np.float64) ** 2).sum())
    cells = device.DeviceBackend(name).cells(
        whole(64), np.full((1, 64), 0.125, np.float32), product + whole(64).slack
    )
    codes = torch.tensor(code, device=name)
    column = torch.tensor([product], dtype=torch.float64, device=name)
    cells.add(np.array([5]), Prepared(np.zeros(1, np.int64), codes, column, column.sqrt()))
    zero = torch.zeros(1, dtype=torch.int64, device=name)
    found, full = cells._look(codes, zero, zero[:, None], 2)
    assert torch.cat(found, dim=1).tolist() == [[0], [5]]
    assert not full.any()
