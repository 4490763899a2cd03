"""Nominate in float32, decide in float64.

Every fp16 number is a multiple of 2⁻²⁴, so products are multiples of 2⁻⁴⁸, and sums below 32 fit
into the 53 bits of a float64: a float64 dot product of two fp16 vectors near unit length is
*exact*, in any order, with any BLAS, on any device. Whatever is fast may therefore choose
candidates, as long as it misses none; the decision is the same bit everywhere.
"""

from __future__ import annotations

import numpy as np

from streamer.records import F16, F32, F64, I64, Bools

NORM_SLACK = 0.01
"""A vector's length may be off 1 by this much; rounding a unit vector to fp16 moves it by less than
2⁻¹⁰."""


def rounding(dim: int) -> float:
    """How far a float32 dot product of ``dim`` terms may be from the exact one, for two vectors of
    length 1 ± `NORM_SLACK`, four times over.

    In float32, with products and sums rounded in any order, |fl(x·y) − x·y| ≤ γ·Σ|xᵢyᵢ| ≤ γ·|x|·|y|
    with γ = d·u/(1 − d·u), u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.1). Four times that also covers accumulators that truncate instead of rounding, as
    tensor cores do: 1.2·10⁻⁴ at 512 dimensions, 1.0·10⁻³ at 4 096.
    """
    unit = dim * 2.0**-24
    return 4 * unit / (1 - unit) * (1 + NORM_SLACK) ** 2


BF16 = 2.0**-9 * 1.03
"""How far rounding a vector of length 1.01 to bfloat16 (8 bits) may move its product with another
one."""
FP16 = 2.0**-11 * 1.03 + 1e-6
"""The same for fp16 (11 bits). The second term covers its subnormal numbers."""


def bound_of(width: int, threshold: float, rounded_by: float) -> float:
    """What a float32 product of ``width`` terms is at least, if one side was rounded (`BF16`,
    `FP16`) and the exact one is at least ``threshold``."""
    return threshold - rounded_by - rounding(width)


def widen(vectors: F16) -> F32:
    """fp16 → float32, exactly, for finite values; others come out as numbers of at least 65 536.
    Pure.

    Two to three times as fast as numpy's ``astype``. Never touches a subnormal float32, which some
    libraries switch off for the process.
    """
    bits = vectors.view(np.uint16).astype(np.uint32)
    signs = (bits & 0x8000) << 16
    bits &= 0x7FFF
    flat = bits.reshape(-1)
    subnormal = np.flatnonzero(flat < 0x400)
    values = flat[subnormal].astype(np.float32) * np.float32(2.0**-24)
    bits <<= 13
    bits += (127 - 15) << 23
    flat.view(np.float32)[subnormal] = values
    bits |= signs
    return bits.view(np.float32)


def similarities(left: F16 | F32, right: F16 | F32) -> F64:
    """(n, d) and (m, d) of fp16 values → (n, m) exact dot products. Pure."""
    products: F64 = left.astype(np.float64) @ right.astype(np.float64).T
    return products


def similarities_of(left: F16 | F32, right: F16 | F32) -> F64:
    """(n, d) and (n, d) of fp16 values → (n,) exact dot products of the rows. Pure."""
    products: F64 = np.einsum("ij,ij->i", left.astype(np.float64), right.astype(np.float64))
    return products


def contenders(left: F32, right: F32, threshold: float) -> tuple[I64, I64, F64]:
    """Where (n, d) and (m, d) of fp16 values may match: ascending rows i of left and j of right,
    and their (|i|, |j|) exact dot products.

    Every pair at or above the threshold is among them. Pure.
    """
    near = left @ right.T >= threshold - rounding(left.shape[1])
    i, j = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    return i, j, similarities(left[i], right[j])


def places(mask: Bools) -> tuple[I64, I64]:
    """(n, m) → the (k,) rows and (k,) columns where it is True, ascending by row: ``np.nonzero``,
    five to ten times as fast. Pure."""
    flat = np.flatnonzero(mask)
    rows = flat // mask.shape[1]
    return rows, flat - rows * mask.shape[1]


def are_unit(vectors: F16, wide: F32) -> Bools:
    """(n, d) and the same in float32 → (n,) is the length finite and 1 ± `NORM_SLACK`? The same bit
    on every machine.

    float32 answers where it is clear. Near the border the float64 sum of squares is exact.
    """
    unit: Bools = np.abs(np.einsum("ij,ij->i", wide, wide) - 1) < NORM_SLACK
    for row in np.flatnonzero(~unit):
        exact = vectors[row].astype(np.float64)
        unit[row] = (1 - NORM_SLACK) ** 2 <= exact @ exact <= (1 + NORM_SLACK) ** 2
    return unit
