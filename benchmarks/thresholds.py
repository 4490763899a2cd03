"""Which threshold for which model? Edits that are found, and different photographs that are taken
for one, over dedup.threshold.

Some of the photographs are edited in many ways; all are decoded and embedded as a replica would,
and compared as the meld compares: exact dot products of L2-normalised fp16 vectors. Recall is the
share of edits at or above τ to their original; false pairs are pairs of *different* photographs at
or above τ. Only eyes can tell whether two files show different things: the closest pairs are
printed, and those that show the same go into the file of --same, one a line (two paths below DIR
and a tab between), to be left out the next time.

    python3 tasks.py bench thresholds --images DIR --same benchmarks/thresholds.same --plot
    docs/deduplication.png python3 tasks.py bench thresholds --images DIR --model
    vit_small_patch14_dinov2.lvd142m --weights FILE python3 tasks.py bench thresholds --images DIR
    --config streamer.yaml

--model takes any timm name; its own pretrained weights are fetched where neither --weights nor
--config says otherwise. Without --images the demo's photographs are taken: too few to say anything
about false pairs. 1 415 photographs are a million pairs; recall needs some hundred.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import emit
from benchmarks.photographs import EDITS, FAMILIES, SEED, Eye, Photo, eye_of, gather, model_options
from streamer.dedup.arithmetic import similarities, similarities_of
from streamer.demo.record import encoded
from streamer.records import F16, F64, I64

TAUS = np.append(np.round(np.arange(0.70, 0.9951, 0.005), 3), 0.999)
SHOWN = (0.70, 0.80, 0.85, 0.90, 0.92, 0.95, 0.97, 0.99)
ROWS = 1024


# What follows from them


def recall(similarity: F64, taus: F64) -> F64:
    """(n,) similarities of edits to their originals → (t,) the share at or above each τ."""
    at_least: F64 = (similarity[:, None] >= taus).mean(axis=0)
    return at_least


class Pairs(NamedTuple):
    """Of different photographs."""

    total: int
    at_least: I64
    """(t,) how many are at or above each τ."""
    photographs: I64
    """(t,) how many photographs are in at least one of those."""
    closest: list[tuple[float, int, int]]
    """Similarity and rows of the most similar ones, falling."""


def pairs_of(vectors: F16, same: Iterable[tuple[int, int]], taus: F64, closest: int = 20) -> Pairs:
    """All pairs of (n, d) vectors but the ``same``. ``taus``: ascending. Memory: a few times that
    of `ROWS` × n similarities."""
    n = len(vectors)
    left_out = np.array(sorted({(min(pair), max(pair)) for pair in same}), np.int64).reshape(-1, 2)
    counts, best, tops = np.zeros(len(taus), np.int64), np.full(n, -1.0), []
    for low in range(0, n, ROWS):
        high = min(low + ROWS, n)
        found = similarities(vectors[low:high], vectors)
        found[np.arange(n) <= np.arange(low, high)[:, None]] = -1.0
        here = left_out[(left_out[:, 0] >= low) & (left_out[:, 0] < high)]
        found[here[:, 0] - low, here[:, 1]] = -1.0
        best = np.maximum(best, found.max(axis=0))
        best[low:high] = np.maximum(best[low:high], found.max(axis=1))
        counts += len(found[found >= taus[0]]) - np.searchsorted(
            np.sort(found[found >= taus[0]]), taus
        )
        nearest = (
            np.argsort(found, axis=None)[-closest:]
            if found.size <= closest
            else np.argpartition(found, -closest, axis=None)[-closest:]
        )
        tops += [
            (float(found.flat[k]), low + int(k) // n, int(k) % n)
            for k in nearest
            if found.flat[k] > -1
        ]
    photographs = (best[:, None] >= taus).sum(axis=0)
    return Pairs(
        n * (n - 1) // 2 - len(left_out), counts, photographs, sorted(tops, reverse=True)[:closest]
    )


def known_same(photos: Sequence[Photo], file: Path | None) -> set[tuple[int, int]]:
    """Rows of the pairs that are no false ones: of one scene, or in the file. Lines that name no
    photograph here are for other folders."""
    rows = {photo.name: row for row, photo in enumerate(photos)}
    lines = [line.split("\t") for line in file.read_text("utf-8").splitlines()] if file else []
    listed = {
        (rows[a], rows[b])
        for a, b in (line for line in lines if len(line) == 2)
        if a in rows and b in rows
    }
    scenes: dict[str, list[int]] = {}
    for row, photo in enumerate(photos):
        scenes.setdefault(photo.scene, []).append(row)
    return listed | {pair for members in scenes.values() for pair in combinations(members, 2)}


def measure(
    eye: Eye, photos: Sequence[Photo], edited: int, same: set[tuple[int, int]], taus: F64
) -> tuple[dict[str, F64], Pairs]:
    """Edit → (t,) recall, and the pairs of different photographs."""
    vectors = eye.vectors((photo.data for photo in photos), len(photos))
    chosen = sorted(random.Random(SEED).sample(range(len(photos)), min(edited, len(photos))))

    def edits() -> Iterator[bytes]:
        for row in chosen:
            picture = eye.picture(photos[row].data)
            for edit, quality in EDITS.values():
                yield encoded(edit(picture), "jpg", quality=quality)

    near = eye.vectors(edits(), len(chosen) * len(EDITS)).reshape(len(chosen), len(EDITS), -1)
    found = {
        name: recall(similarities_of(near[:, k], vectors[chosen]), taus)
        for k, name in enumerate(EDITS)
    }
    return found, pairs_of(vectors, same, taus)


def result_of(
    model: str,
    dim: int,
    photographs: int,
    edited: int,
    same: int,
    recalls: Mapping[str, F64],
    pairs: Pairs,
) -> dict[str, Any]:
    return {
        "model": model, "dim": dim, "photographs": photographs, "edited": edited, "pairs": pairs.total, "same": same, "taus": TAUS.tolist(),
        "recall": {name: np.round(values, 4).tolist() for name, values in recalls.items()},
        "false_pairs": pairs.at_least.tolist(), "photographs_in_false_pairs": pairs.photographs.tolist(),
    }  # fmt: skip


# How it is shown


def show(result: Mapping[str, Any], closest: Sequence[tuple[float, str, str]]) -> None:
    """The closest pairs and the table, on stdout."""
    print("\nthe closest pairs that count as different:")
    for similarity, a, b in closest:
        print(f"{similarity:.3f}  {a}\t{b}")
    taus = np.array(result["taus"])
    columns = [int(np.abs(taus - tau).argmin()) for tau in SHOWN]

    def line(name: str, values: Iterable[str]) -> None:
        print(f"{name:<26}" + "".join(f"{value:>8}" for value in values))

    print(
        f"\n{result['model']}: {result['photographs']} photographs, {result['edited']} of them edited; percent found at threshold"
    )
    line("", (f"{taus[k]:.2f}" for k in columns))
    for family, edits in FAMILIES.items():
        print(family)
        for name in edits:
            line(f"  {name}", (f"{100 * result['recall'][name][k]:.1f}" for k in columns))
    print(
        f"Different photographs ({result['pairs']:,} pairs, without {result['same']} that show the same)"
    )
    line("  false pairs", (str(result["false_pairs"][k]) for k in columns))
    counts, one = result["false_pairs"], 1e6 / result["pairs"]
    line(
        "  … per million pairs",
        (
            f"{'' if counts[k] else '<'}{one * max(counts[k], 1):{',.0f' if one > 50 else '.1f'}}"
            for k in columns
        ),
    )
    line("  photographs in them", (str(result["photographs_in_false_pairs"][k]) for k in columns))


PAPER, INK, SOFT, GRID, BLUE, RED = "#ffffff", "#22272e", "#6b7480", "#e6e9ed", "#2563a8", "#c2412d"
STRENGTHS = ("#a3c9e8", "#5f9ed3", "#2f6fb0", "#0f3563")
COLOURS = ("#2563a8", "#e08a1e", "#2f9e7a", "#8c5bb3", "#4b5563")
GRADED = ("Saved again as JPEG", "Made smaller", "Cropped, left and top")
"""Families whose edits differ in strength only."""


def plot(result: Mapping[str, Any], path: Path) -> None:
    """A panel for each family of edits, and one below for different photographs, all over the same
    thresholds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    taus, ticks = np.array(result["taus"]), np.arange(0.70, 1.01, 0.05)
    mpl.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK})
    mpl.rcParams.update(dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), SOFT))
    figure = pyplot.figure(figsize=(10.4, 8.8), facecolor=PAPER)
    upper = figure.add_gridspec(
        2, 3, left=0.062, right=0.978, top=0.835, bottom=0.405, hspace=0.4, wspace=0.13
    )
    lower = figure.add_gridspec(1, 1, left=0.062, right=0.978, top=0.312, bottom=0.072)

    def write(y: float, text: str, size: float, **style: Any) -> None:
        figure.text(0.062, y, text, size=size, **style)

    write(0.957, "What a threshold finds, and what it takes for the same", 15, weight="bold")
    measured = f"{result['photographs']:,} photographs, {result['edited']} of them edited in {len(EDITS)} ways"
    write(0.928, f"{result['model']} ({result['dim']} dimensions) · {measured}", 10, color=SOFT)
    write(0.88, "Edits that are found, at or above the threshold", 10.5, weight="bold", color=BLUE)
    write(
        0.332,
        "Different photographs that are taken for one: false pairs per million pairs",
        10.5,
        weight="bold",
        color=RED,
    )

    def dressed(axes: Any) -> Any:
        axes.set_xlim(taus[0], 1.0)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#c9ced6")
        axes.tick_params(length=0)
        return axes

    for at, (family, edits) in enumerate(FAMILIES.items()):
        axes = dressed(figure.add_subplot(upper[at // 3, at % 3]))
        axes.set_title(family, loc="left", size=9.5, weight="bold", color=INK, pad=5)
        for k, name in enumerate(edits):
            colour = STRENGTHS[round(3 * k / (len(edits) - 1))] if family in GRADED else COLOURS[k]
            axes.plot(
                taus,
                result["recall"][name],
                color=colour,
                linewidth=2,
                label=name,
                solid_capstyle="round",
            )
        axes.set_ylim(0, 1.03)
        axes.set_xticks(ticks, ["0.7", "", "0.8", "", "0.9", "", "1.0"])
        axes.set_yticks(
            [0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"] if at % 3 == 0 else [""] * 5
        )
        axes.legend(
            loc="upper right" if family == "Made smaller" else "lower left",
            frameon=False,
            fontsize=8.5,
            handlelength=1.3,
            labelspacing=0.35,
            borderaxespad=0.3,
        )

    axes = dressed(figure.add_subplot(lower[0]))
    one = 1e6 / result["pairs"]
    rates = one * np.array(result["false_pairs"])
    seen = rates > 0
    axes.plot(taus[seen], rates[seen], color=RED, linewidth=2.2, solid_capstyle="round")
    for tau in (0.75, 0.80, 0.85, 0.90):
        k = int(np.abs(taus - tau).argmin())
        if seen[k]:
            axes.plot(
                taus[k],
                rates[k],
                "o",
                color=RED,
                markersize=6,
                markeredgecolor=PAPER,
                markeredgewidth=1.2,
            )
            label = f"{rates[k]:.1f}" if rates[k] < 10 else f"{rates[k]:,.0f}"
            axes.annotate(
                label,
                (taus[k], rates[k]),
                (5, 6),
                textcoords="offset points",
                size=9.5,
                weight="bold",
            )
    axes.set_yscale("log")
    axes.set_ylim(one / 2.5, max(10 * one, 2 * float(rates.max())))
    axes.axhspan(one / 2.5, one, color="#f1f2f4", zorder=0)
    few = f"less than one of {result['pairs']:,} pairs: more photographs would be needed to see it"
    axes.text(0.998, one / 1.58, few, ha="right", va="center", color=SOFT, size=8.5)
    axes.set_xticks(ticks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("threshold τ: cosine similarity at or above which two are near-duplicates")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, metavar="DIR")
    parser.add_argument(
        "--same", type=Path, metavar="FILE", help="pairs that show the same picture"
    )
    parser.add_argument("--edited", type=int, default=300, help="photographs that are edited")
    model_options(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help=".png or .svg")
    given = parser.parse_args()
    eye, config = eye_of(given)
    photos = [photo for photo in gather(given.images) if eye.can_see(photo)]
    if len(photos) < 2:
        raise SystemExit(f"{given.images}: holds fewer than two images that can be decoded")
    same = known_same(photos, given.same)
    edited = min(given.edited, len(photos))
    recalls, pairs = measure(eye, photos, edited, same, TAUS)
    name = getattr(config.embedder, "model", config.embedder.type)
    result = result_of(name, eye.dim, len(photos), edited, len(same), recalls, pairs)
    show(
        result, [(similarity, photos[i].name, photos[j].name) for similarity, i, j in pairs.closest]
    )
    if given.plot:
        plot(result, given.plot)
    emit("thresholds", **result)


if __name__ == "__main__":
    main()
