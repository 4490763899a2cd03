"""Small pictures for the contact sheet, as ``data:`` addresses, so that the page is one file."""

from __future__ import annotations

import base64
import io

from PIL import Image

from streamer.config import Decode
from streamer.decode.image import decode_rgb, read_header, set_up
from streamer.errors import InvalidRecord

SIDE = 300
"""Pixels of the longer side at most."""
_LIMITS = Decode()
_JPEG_END = b"\xff\xd9"
"""With its end mark back, a JPEG that was cut short decodes as far as it goes."""


def thumbnail(data: bytes) -> str:
    """A JPEG as a ``data:`` address; empty where there is nothing to see. What can be read of a
    damaged image is shown."""
    set_up(_LIMITS.max_pixels)
    try:
        header = read_header(data, _LIMITS)
    except InvalidRecord:
        return ""
    for attempt, whole in ((data, True), (data + _JPEG_END, False)):
        try:
            return _address(decode_rgb(attempt, header, (SIDE, SIDE), whole))
        except InvalidRecord:
            continue
    return ""


def _address(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    output = io.BytesIO()
    image.save(output, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(output.getvalue()).decode()
