"""Rows in the cells of one training on a GPU: the same bounds as `streamer.dedup.cells`, in torch,
over Faiss's `GpuIndexIVFScalarQuantizer`.

Codes and products with centroids are float64 there: they are few, and nothing that another part of
the process sets (TF32) rounds them. Faiss holds the codes as fp16. Its GPU lists know no range
search: a look into a query's cells brings back the `BEST` best of them. Where even the last of
these may match, each of the cells is looked into alone for the best `MOST`; where that is not
enough either, all rows of the cell are nominated. So nothing is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import faiss.contrib.torch_utils as pointers  # lets Faiss's indexes take torch tensors, on torch's current stream
import numpy as np
import torch

from streamer.dedup.arithmetic import FP16, bound_of, rounding
from streamer.dedup.backend import Prepared, Queries
from streamer.dedup.cells import slack_of
from streamer.dedup.sketch import Sketch
from streamer.records import F16, F32, F64, I64

PROBES = 128
"""Cells of one look. A query with more of them takes several; for each Faiss allocates PROBES · (4
w + 12 k) bytes."""
LOOKS = 1024
"""Looks of one call; from 65 536 on Faiss's scan would leave some out after one that is filled up."""
BEST = 32
MOST = 2048
"""Faiss's limit for k on a GPU."""
PRODUCTS = 8_000_000
"""Float64 products with centroids at once, when rows are assigned."""
TEMPORARY = 128 << 20
"""Bytes of device memory that Faiss keeps for its intermediate results; its own default is 1.5 GB."""


class DeviceCells:
    """See `CellIndex`."""

    def __init__(
        self,
        sketch: Sketch,
        centroids: F32,
        threshold: float,
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ) -> None:
        count, width = centroids.shape
        self.sketch = sketch
        self.centroids = centroids
        self.sizes = np.zeros(count, np.int64)
        self._threshold = threshold - sketch.slack
        self._bound = bound_of(width, self._threshold, FP16)
        self._slack = slack_of(width)
        self._nearness = 4 * rounding(width)
        self._device = device
        self._stream = stream
        with torch.cuda.stream(stream):
            self._basis = torch.tensor(sketch.basis, dtype=torch.float64, device=device)
            self._centroids = torch.tensor(centroids, dtype=torch.float64, device=device)
            self._least = torch.full((count,), 2.0, dtype=torch.float64, device=device)
            self._most = torch.full((count,), -2.0, dtype=torch.float64, device=device)
        self._longest = 0.0
        self._lists = _lists(centroids, device)

    # Any thread

    def prepare(self, vectors: F16, cells: I64 | None) -> Prepared:
        with torch.cuda.stream(self._stream):
            codes, lengths = self._codes(torch.tensor(vectors, device=self._device).float())
            if cells is None:
                step = max(PRODUCTS // len(self._centroids), 1)
                inside = torch.cat(
                    [(part @ self._centroids.T).argmax(dim=1) for part in torch.split(codes, step)]
                )
                cells = inside.cpu().numpy()
            else:
                inside = torch.tensor(cells, device=self._device)
            products = (codes * self._centroids[inside]).sum(dim=1)
            return Prepared(cells, codes.float(), products, lengths)

    def needed(self, queries: Queries, asking: I64, cells: I64) -> F64:
        if not len(cells):
            return np.empty(0)
        with torch.cuda.stream(self._stream):
            codes, lengths = self._codes(queries.keys[asking])
            inside = torch.tensor(cells, device=self._device)
            best, own = (codes @ self._centroids.T).max(dim=1)
            gap = best - (codes * self._centroids[inside]).sum(dim=1) - self._slack
            distances = self._distances((self._centroids[own] * self._centroids[inside]).sum(dim=1))
            least = gap.clamp(min=0) / (self._radius(lengths).clamp(min=1e-6) * distances)
            result: F64 = torch.where(own == inside, 0.0, least).cpu().numpy()
        return result

    # One thread at a time

    def add(self, rows: I64, prepared: Prepared) -> None:
        with torch.cuda.stream(self._stream):
            inside, numbers = (
                torch.tensor(values, device=self._device) for values in (prepared.cells, rows)
            )
            cosines = prepared.products / prepared.lengths
            self._least.scatter_reduce_(0, inside, cosines, "amin")
            self._most.scatter_reduce_(0, inside, cosines, "amax")
            self._longest = max(self._longest, float(prepared.lengths.max()))
            _add(self._lists, prepared.codes, numbers, inside)
        np.add.at(self.sizes, prepared.cells, 1)

    def nominate(
        self, queries: Queries, rho: F32, rows_in: Callable[[int], I64]
    ) -> tuple[I64, I64]:
        with torch.cuda.stream(self._stream):
            codes, lengths = self._codes(queries.keys)
            found, left = self._scan(
                codes.float(), *self._probe(codes, lengths, torch.tensor(rho, device=self._device))
            )
            pairs = [part.cpu().numpy() for part in found]
        for cell in np.unique(left[1]).tolist():
            rows, asking = rows_in(cell), left[0][left[1] == cell]
            pairs.append(np.stack([np.repeat(asking, len(rows)), np.tile(rows, len(asking))]))
        asking, rows = np.concatenate(pairs, axis=1)
        return asking, rows

    def _codes(self, wide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, d) float32 of fp16 values → (n, w) float64 as `Sketch.codes` makes them, and (n,)
        their lengths, rounded up a little."""
        codes = wide.double()
        if self._basis.shape[1]:
            kept = codes @ self._basis
            left = (codes * codes).sum(dim=1) - (kept * kept).sum(dim=1) + self.sketch.pad
            codes = torch.cat([kept, left.clamp(min=0).sqrt()[:, None]], dim=1)
        return codes, torch.linalg.vector_norm(codes, dim=1) * (1 + 1e-5)

    def _radius(self, lengths: torch.Tensor) -> torch.Tensor:
        reach = max(self._threshold, 0.0) / max(self._longest, 1e-9)
        return (lengths**2 - reach**2).clamp(min=0).sqrt()

    def _distances(self, products: torch.Tensor) -> torch.Tensor:
        """Of centroids, from their products; never too small."""
        return ((2 - 2 * products).clamp(min=0) + self._nearness).sqrt()

    def _probe(
        self, codes: torch.Tensor, lengths: torch.Tensor, rho: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(k,) queries, ascending, and (k,) cells: see `streamer.dedup.cells.probe`."""
        products = codes @ self._centroids.T
        best, own = products.max(dim=1)
        reach = (rho * self._radius(lengths))[:, None] * self._distances(
            self._centroids[own] @ self._centroids.T
        )
        near = best[:, None] - products <= reach + self._slack
        lower, upper = self._ring(
            self._threshold / (self._longest * lengths.max() + 1e-9), 2 * self._slack
        )
        cosines = products / lengths[:, None]
        queries, cells = (near & (cosines >= lower) & (cosines <= upper)).nonzero(as_tuple=True)
        return queries, cells

    def _ring(self, reach: torch.Tensor, slack: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(L,) each: see `streamer.dedup.cells.Bounds.ring`."""
        angle = reach.clamp(-1, 1).arccos()
        nearest = (self._most + slack).clamp(-1, 1).arccos()
        farthest = (self._least - slack).clamp(-1, 1).arccos()
        upper = (nearest - angle).clamp(min=0).cos() + slack
        lower = (farthest + angle).clamp(max=torch.pi).cos() - slack
        return lower, torch.where(self._most < -1.5, -2.0, upper)

    def _scan(
        self, codes: torch.Tensor, queries: torch.Tensor, cells: torch.Tensor
    ) -> tuple[list[torch.Tensor], tuple[I64, I64]]:
        """(n, w) float32, and what `_probe` gave → (2, m) queries and rows each; and (r,) queries
        and cells whose rows are too many."""
        asking, keys = _looks(queries, cells, len(codes))
        found, full = self._look(codes, asking, keys, BEST)
        if not bool(full.any()):
            return found, (np.empty(0, np.int64), np.empty(0, np.int64))
        crowded = keys[full]
        there = crowded >= 0
        each, alone = asking[full][:, None].expand_as(crowded)[there], crowded[there]
        more, full = self._look(codes, each, alone[:, None], MOST)
        return found + more, (each[full].cpu().numpy(), alone[full].cpu().numpy())

    def _look(
        self, codes: torch.Tensor, asking: torch.Tensor, keys: torch.Tensor, k: int
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(m,) queries look into (m, p) cells, −1 for none → (2, h) queries and rows each; and (m,)
        where more than k rows may match."""
        found = [torch.empty((2, 0), dtype=torch.int64, device=self._device)]
        full = [torch.empty(0, dtype=torch.bool, device=self._device)]
        self._lists.nprobe = keys.shape[1]
        for at in range(0, len(asking), LOOKS):
            part = asking[at : at + LOOKS]
            inside = keys[at : at + LOOKS].contiguous()
            products, rows = self._lists.search_preassigned(
                codes[part],
                k,
                inside,
                torch.zeros(inside.shape, dtype=torch.float32, device=self._device),
            )
            may = products >= self._bound
            full.append(may[:, -1])
            look, column = (may & ~may[:, -1:]).nonzero(as_tuple=True)
            found.append(torch.stack([part[look], rows[look, column]]))
        return found, torch.cat(full)


def _looks(queries: torch.Tensor, cells: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(k,) probes, ascending by query → (m,) queries and (m, p) cells of each look, p at most
    `PROBES`, filled up with −1."""
    counts = torch.bincount(queries, minlength=n)
    wide = max(min(int(counts.max()), PROBES), 1)
    looks = (counts + wide - 1) // wide
    nth = torch.arange(len(queries), device=queries.device) - (counts.cumsum(0) - counts)[queries]
    look = (looks.cumsum(0) - looks)[queries] + nth // wide
    keys = torch.full((int(looks.sum()), wide), -1, dtype=torch.int64, device=queries.device)
    keys[look, nth % wide] = cells
    return torch.repeat_interleave(looks), keys


def _lists(centroids: F32, device: torch.device) -> Any:
    """Empty inverted lists of fp16 codes. Rows and looks name their cells: the centroids are there
    because Faiss wants as many as lists."""
    count, width = centroids.shape
    quantizer = faiss.IndexFlatIP(width)
    quantizer.add(centroids)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, width, count, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.is_trained = True
    if device.type == "cpu":
        return index
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(TEMPORARY)
    resources.setPinnedMemory(
        0
    )  # 256 MB of host memory, which only vectors that come from there would need
    options = faiss.GpuClonerOptions()
    options.use_cuvs = False  # its lists take no cells of ours
    return faiss.index_cpu_to_gpu(resources, device.index or 0, index, options)


def _add(lists: Any, codes: torch.Tensor, rows: torch.Tensor, cells: torch.Tensor) -> None:
    numbers = (pointers.swig_ptr_from_IndicesTensor(values) for values in (rows, cells))
    if codes.is_cuda:
        with pointers.using_stream(lists.getResources()):
            lists.add_core(len(codes), pointers.swig_ptr_from_FloatTensor(codes), *numbers)
    else:
        lists.add_core(len(codes), pointers.swig_ptr_from_FloatTensor(codes), *numbers)
