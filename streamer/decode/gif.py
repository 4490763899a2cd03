"""GIF: what stands before the first frame."""

from __future__ import annotations

import re
import struct

from streamer.decode.prepared import MAX_PARTS, Kept, Prepared, too_many

_BLOCK = re.compile(rb"[!,;]")
_EXTENSION, _CONTROL, _CONTROL_BYTES = 0x21, 0xF9, 4


def prepare(data: bytes) -> Prepared:
    """Removes comments, application data, text and junk before the first frame. The frame's graphic
    control, which holds transparency, stays. Raises InvalidRecord, unsupported_image."""
    kept = Kept(data)
    if len(data) < 13:
        return Prepared(kept.parts())
    width, height = struct.unpack_from("<HH", data, 6)
    flags = data[10]
    at, blocks = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0), 0
    while (found := _BLOCK.search(data, at)) is not None:
        kept.drop(at, found.start())
        at = found.start()
        if data[at] != _EXTENSION or at + 2 >= len(data):
            break
        begin, at = at, at + 2
        while at < len(data) and data[at] and blocks <= MAX_PARTS:
            at += 1 + data[at]
            blocks += 1
        at += 1
        blocks += 1
        if blocks > MAX_PARTS:
            raise too_many("blocks before the first frame")
        if at < len(data) and (data[begin + 1] != _CONTROL or data[begin + 2] < _CONTROL_BYTES):
            kept.drop(begin, at)
    return Prepared(kept.parts(), tile=(max(width, 1), max(height, 1)))
