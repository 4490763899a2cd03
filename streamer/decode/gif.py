"""GIF: what stands before the first frame."""

from __future__ import annotations

import re

from streamer.decode.plain import MAX_PARTS, Kept, Plain, too_many

_BLOCK = re.compile(rb"[!,;]")
_EXTENSION, _CONTROL, _CONTROL_BYTES = 0x21, 0xF9, 4


def plain(data: bytes) -> Plain:
    """Leaves out comments, application data and text before the first frame, but not its graphic
    control (transparency), and what stands between blocks. Raises InvalidRecord,
    unsupported_image."""
    kept = Kept(data)
    if len(data) < 13:
        return Plain(kept.parts())
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
    return Plain(kept.parts())
