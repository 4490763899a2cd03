"""The CUDA C of `streamer.model.jpeg` compiled for the CPU: a thread after another. What it
computes is the same; only its speed and what threads do to each other are not."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

import streamer.model.jpeg
from streamer.model.geometry import Geometry
from streamer.records import U8, Jpeg

FOLDER = Path(streamer.model.jpeg.__file__).parent
PRELUDE = """
struct Index { int x, y, z; };
static Index blockIdx, threadIdx, blockDim, gridDim;
#define __device__
#define __forceinline__
#define __global__
#define __shared__ static
static void __syncthreads() {}
static void atomicAdd(int *at, int value) { *at += value; }
template <class Kernel> void each(int across, int down, Kernel kernel) {
    gridDim = {across, down, 1}, blockDim = {1, 1, 1}, threadIdx = {0, 0, 0};
    for (int y = 0; y < down; y++)
        for (int x = 0; x < across; x++) blockIdx = {x, y, 0}, kernel();
}
"""
ENTRIES = {
    "resize.cu": """
extern "C" void run(const Image *images, int n, int lines, int outputs, int *coefficients,
                    unsigned char *between, unsigned char *out, long long bytes, int cubic,
                    int fill) {
    each(2, n, [&] { weigh(images, coefficients, cubic); });
    each(lines, n, [&] { pass_0(images, coefficients, between, cubic); });
    each(outputs, n, [&] { pass_1(images, coefficients, between, out, bytes, cubic, fill); });
}
""",
    "whole.cu": """
extern "C" void run(const File *files, int n, const byte *data, float *levels, byte *whole,
                    const Picture *pictures, int shown) {
    each(n, 1, [&] { walk(files, data, levels, whole); });
    each(shown, 1, [&] { compare(pictures, files, levels, whole); });
}
""",
}


@cache
def _library(source: str) -> ctypes.CDLL:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: the GPU's code is tested on a GPU only")
    folder = Path(mkdtemp())
    code = folder / "emulated.cpp"
    code.write_text(f'{PRELUDE}\n#include "{FOLDER / source}"\n{ENTRIES[source]}')
    library = folder / "emulated.so"
    subprocess.run(
        [
            compiler,
            "-std=c++17",
            "-O2",
            "-ffp-contract=off",
            "-fwrapv",
            "-shared",
            "-fPIC",
            "-o",
            library,
            code,
        ],
        check=True,
    )
    loaded = ctypes.CDLL(str(library))
    shutil.rmtree(folder)
    return loaded


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def resize(images: Sequence[U8], orientations: Sequence[int], geometry: Geometry) -> U8:
    """Images as stored → (n, height, width, 3)."""
    from streamer.model.jpeg.resize import Source, plan

    library = _library("resize.cu")
    padded = []  # rows further apart than they are long, as decoders leave them
    for image in images:
        rows = np.zeros((image.shape[0], 3 * image.shape[1] + 5), np.uint8)
        rows[:, :-5] = image.reshape(len(image), -1)
        padded.append(rows)
    sources = [
        Source(rows.ctypes.data, rows.strides[0], *image.shape[:2], orientation)
        for rows, image, orientation in zip(padded, images, orientations, strict=True)
    ]
    table, coefficients, between = plan(sources, geometry)
    out = np.full((len(images), geometry.height, geometry.width, 3), 77, np.uint8)
    weights, halfway = np.full(coefficients, 1 << 20, np.int32), np.full(between, 77, np.uint8)
    library.run(
        _at(table), len(images), int(table["count"].max()), max(geometry.height, geometry.width),
        _at(weights), _at(halfway), _at(out), ctypes.c_longlong(out[0].size),
        int(geometry.filter == "bicubic"), int.from_bytes(bytes(geometry.fill), "big"),
    )  # fmt: skip
    return out


def vouched(jpegs: Sequence[Jpeg], pictures: Sequence[U8 | None]) -> list[bool]:
    """For each file whether it is whole and its picture, (rows, columns, 3) as stored, is its own;
    None: without looking at one."""
    from streamer.model.jpeg.resize import Source
    from streamer.model.jpeg.whole import file_table, picture_table

    library = _library("whole.cu")
    files = file_table(jpegs)
    data = np.frombuffer(b"".join(jpeg.data for jpeg in jpegs), np.uint8)
    levels = np.full(sum(jpeg.rows // 8 + 1 for jpeg in jpegs), np.nan, np.float32)
    whole = np.zeros(len(jpegs), np.uint8)
    shown = [(i, np.ascontiguousarray(p)) for i, p in enumerate(pictures) if p is not None]
    table = picture_table(
        [(i, Source(p.ctypes.data, p.strides[0], *p.shape[:2], 1)) for i, p in shown]
    )
    library.run(_at(files), len(jpegs), _at(data), _at(levels), _at(whole), _at(table), len(shown))
    return [bool(flag) for flag in whole]
