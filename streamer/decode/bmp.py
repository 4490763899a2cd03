"""BMP: the palettes that Pillow takes for none."""

from __future__ import annotations

import struct

from streamer.decode.plain import Kept, Plain

_OFFSET, _HEADER, _BITS, _COLOURS = 10, 14, 28, 46
"""Where the file says where its pixels are, how long its header is, …"""
_BLACK = bytes(4)


def plain(data: bytes) -> Plain:
    """Adds a colour that no pixel has, where 4 or 8 bits a pixel have black and white for colours,
    or 4 bits the darkest 16 greys: Pillow would leave such a palette out, and with it the bits."""
    kept = Kept(data)
    if len(data) >= _COLOURS + 8:
        offset, header = struct.unpack_from("<I", data, _OFFSET)[0], data[_HEADER]
        bits, colours = data[_BITS], int.from_bytes(data[_COLOURS : _COLOURS + 4], "little")
        colours = colours or 1 << bits
        behind = _HEADER + header + 4 * colours
        if header >= 40 and (bits == 4 or (bits == 8 and colours == 2)) and behind <= len(data):
            if offset >= behind:
                kept.drop(_OFFSET, _OFFSET + 4, struct.pack("<I", offset + len(_BLACK)))
            kept.drop(_COLOURS, _COLOURS + 4, struct.pack("<I", colours + 1))
            kept.drop(behind, behind, _BLACK)
    return Plain(kept.parts())
