"""AV1 (AV1 Bitstream & Decoding Process Specification): how many frames there are, and how large
they may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from streamer.decode.prepared import MAX_PARTS, too_many

Bytes = bytes | memoryview

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
_SIDE = 1 << 14
"""libavif's limit of a frame, as of one that is square"""
_HEADER_BYTES = 256
"""of a sequence header, more than all 32 operating points take"""


class Coded(NamedTuple):
    """What a decoder is given at a time: an item, or a sample of a track."""

    width: int
    """Pixels, as the sequence header announces"""
    height: int
    largest: int
    """Pixels of a frame that announces its own size"""
    frames: int


def coded(payloads: Iterable[Bytes]) -> list[Coded]:
    """What is in each payload, as far as it makes sense. Raises InvalidRecord, unsupported_image,
    for more than `MAX_PARTS` units in all."""
    found, left = [], MAX_PARTS
    for payload in payloads:
        width = height = largest = 1
        frames = 0
        for kind, unit in _units(payload):
            left -= 1
            if left < 0:
                raise too_many("units of AV1")
            if kind == _SEQUENCE_HEADER:
                width, height, largest = _sizes(unit, (width, height, largest))
            elif kind in (_FRAME_HEADER, _FRAME):
                frames += 1
        found.append(Coded(width, height, largest, frames))
    return found


def _units(payload: Bytes) -> Iterator[tuple[int, Bytes]]:
    """(type, what follows its header) of each OBU (section 5.3)."""
    at = 0
    while at < len(payload):
        header = payload[at]
        at += 2 if header & 4 else 1
        size = len(payload) - at
        if header & 2:
            size, at = _leb128(payload, at)
        yield header >> 3 & 15, payload[at : at + size]
        at += size


def _leb128(payload: Bytes, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(payload[at : at + 8]):
        value |= (byte & 0x7F) << 7 * i
        if not byte & 0x80:
            return value, at + i + 1
    return len(payload), at


def _sizes(unit: Bytes, others: tuple[int, int, int]) -> tuple[int, int, int]:
    """Width, height and largest frame by a sequence header (section 5.5), if they are more than
    those of ``others``."""
    bits = _Bits(unit)
    bits.skip(4)  # seq_profile, still_picture
    still = bits.read(1)  # reduced_still_picture_header
    if still:
        bits.skip(5)
    else:
        _skip_operating_points(bits)
    across, down = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(across) + 1, bits.read(down) + 1
    largest = width * height if still else min(1 << across + down, _SIDE * _SIDE)
    return max(width, others[0]), max(height, others[1]), max(largest, others[2])


def _skip_operating_points(bits: _Bits) -> None:
    delay = 0
    if timing := bits.read(1):
        bits.skip(64)
        if bits.read(1):  # equal_picture_interval
            bits.skip_uvlc()
        if timing := bits.read(1):  # decoder_model_info_present_flag
            delay = bits.read(5) + 1
            bits.skip(42)
    initial_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.skip(12)
        if bits.read(5) > 7:  # seq_level_idx
            bits.skip(1)
        if timing and bits.read(1):
            bits.skip(2 * delay + 1)
        if initial_delay and bits.read(1):
            bits.skip(4)


class _Bits:
    """Most significant bit first; zeros behind the end."""

    def __init__(self, data: Bytes) -> None:
        self._bits = int.from_bytes(bytes(data[:_HEADER_BYTES]).ljust(_HEADER_BYTES, b"\0"), "big")
        self._left = 8 * _HEADER_BYTES

    def read(self, count: int) -> int:
        self._left -= count
        return self._bits >> max(self._left, 0) & ((1 << count) - 1)

    def skip(self, count: int) -> None:
        self._left -= count

    def skip_uvlc(self) -> None:
        zeros = 0
        while zeros < 32 and not self.read(1):
            zeros += 1
        self.skip(zeros if zeros < 32 else 0)
