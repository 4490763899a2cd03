"""What does the most expensive image cost that the decoder takes, in CPU time and in memory?

Each image is read and decoded in a process of its own, on one thread: files that were made to be
expensive, just within the limits of `streamer.decode` and far beyond them, and with ``--files`` the
files of a folder, of which the worst of each format are shown.

    python3 tasks.py bench costly [--files DIR] [--only WORD] [--unlimited]
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from streamer.config import Decode
from streamer.decode.image import decode_rgb, read_header, set_up, sniff
from streamer.errors import InvalidRecord

SIDE = 8000
"""Of a square as large as decode.max_pixels"""
TALL = 20_000_000
"""Rows of one pixel that are just few enough"""
_ADAM7_PASSES = 7


# Files made to be expensive


def saved(format: str, mode: str, size: tuple[int, int], **options: object) -> bytes:
    """A plain picture."""
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, format, **options)
    return stream.getvalue()


def jpeg(size: tuple[int, int], scans: int, *, arithmetic: bool = False, samples: int = 1) -> bytes:
    """Progressive, with hardly any data: each scan but the first refines coefficients, all of which
    a decoder looks at."""
    blocks = -(-size[0] // 8) * -(-size[1] // 8)
    components = b"".join(bytes((i + 1, 0x11, 0)) for i in range(samples))
    every = bytes((samples,)) + b"".join(bytes((i + 1, 0)) for i in range(samples))
    head = _segment(0xDB, bytes((0, *[1] * 64)))
    head += _segment(
        0xCA if arithmetic else 0xC2, struct.pack(">BHHB", 8, *size[::-1], samples) + components
    )
    if arithmetic:
        first = refining = b"\x55\xaa" * 50
    else:
        head += _table(0x00, 0x00) + _table(0x10, 0xE0)  # a zero; 16 384 to 32 767 empty blocks
        first = bytes(blocks * samples // 8 + 1)
        refining = _stuffed(int("1" + f"0{32767 - 16384:014b}" * -(-blocks // 32767), 2))
    scan = [_segment(0xDA, bytes((1, i + 1, 0, 1, 63, 0x10))) + refining for i in range(samples)]
    if arithmetic:
        scan = [_segment(0xDA, bytes((1, i + 1, 0, 1, 63, 0))) + first for i in range(samples)]
    rest = b"".join(scan[i % samples] for i in range(scans - 1))
    return b"\xff\xd8" + head + _segment(0xDA, every + bytes(3)) + first + rest + b"\xff\xd9"


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _table(number: int, symbol: int) -> bytes:
    """One symbol, whose code is 0."""
    return _segment(0xC4, bytes((number, 1, *[0] * 15, symbol)))


def _stuffed(bits: int) -> bytes:
    """All but the leading 1, filled up with ones."""
    text = f"{bits:b}"[1:]
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def zeros(count: int) -> bytes:
    """Deflated"""
    deflate, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [
        deflate.compress(block[: min(len(block), count - at)]) for at in range(0, count, len(block))
    ]
    return b"".join(parts) + deflate.flush()


def png(
    size: tuple[int, int],
    depth: int,
    colour: int,
    transparent: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    width, height = size
    row = 1 + -(-width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] // 8)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    count = row * height + (_ADAM7_PASSES * (row + height) if interlaced else 0)
    chunks = [(b"IHDR", header), (b"IDAT", zeros(count)), (b"IEND", b"")]
    if transparent:
        chunks.insert(1, (b"tRNS", transparent))
    parts = (
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(size: tuple[int, int], bits: int, codes: bytes) -> bytes:
    """Run-length-coded"""
    header = struct.pack(
        "<IiiHHIIiiII", 40, *size, 1, bits, 1 if bits == 8 else 2, len(codes), 0, 0, 0, 0
    )
    at = 14 + len(header) + (4 << bits)
    return (
        b"BM" + struct.pack("<IHHI", at + len(codes), 0, 0, at) + header + bytes(4 << bits) + codes
    )


def runs(size: tuple[int, int], length: int) -> bytes:
    """The codes of an image in runs of ``length`` pixels."""
    whole, rest = divmod(size[0], length)
    return (bytes((length, 1)) * whole + bytes((rest, 1)) * bool(rest) + b"\0\0") * size[1]


def tiff(
    size: tuple[int, int], compression: int, data: bytes, *, samples: int = 1, bits: int = 8,
    rows: int = 0, tile: tuple[int, int] | None = None, pieces: int = 1, floats: bool = False,
) -> bytes:  # fmt: skip
    """``pieces`` strips of ``rows``, or tiles, that all share ``data``."""
    where, lengths = [8] * pieces, [len(data)] * pieces
    tags = {
        256: size[:1], 257: size[1:], 258: [bits] * samples, 259: [compression], 262: [2 if samples > 2 else 1],
        277: [samples], 339: [3 if floats else 1] * samples,
    }  # fmt: skip
    if samples == 4:
        tags[338] = [2]
    if tile:
        tags |= {322: tile[:1], 323: tile[1:], 324: where, 325: lengths}
    else:
        tags |= {273: where, 278: [rows or size[1]], 279: lengths}
    at = 8 + len(data) + len(data) % 2
    behind, entries, more = at + 6 + 12 * len(tags), b"", b""
    for tag, values in sorted(tags.items()):
        value = struct.pack(f"<{len(values)}I", *values)
        if len(value) > 4:
            value, more = struct.pack("<I", behind + len(more)), more + value
        entries += struct.pack("<HHI", tag, 4, len(values)) + value
    header = b"II*\0" + struct.pack("<I", at) + data + bytes(len(data) % 2)
    return header + struct.pack("<H", len(tags)) + entries + bytes(4) + more


def avif(claimed: tuple[int, int], real: tuple[int, int], frames: int = 1, items: int = 1) -> bytes:
    """Items that are ``claimed`` to be as large, all the same bytes of a picture of ``real`` size:
    its frame so many times."""
    made = saved("AVIF", "L", real, speed=10)
    config = made.index(b"av1C") - 4
    config_box = made[config : config + int.from_bytes(made[config : config + 4], "big")]
    units = made[made.index(b"mdat") + 4 :]
    frame = units.index(b"\x32")  # OBU_FRAME with a size, behind delimiter and sequence header
    units = units[:frame] + units[frame:] * frames

    def box(kind: bytes, *parts: bytes) -> bytes:
        return struct.pack(">I", 8 + sum(map(len, parts))) + kind + b"".join(parts)

    def meta(at: int) -> bytes:
        ids = range(1, items + 1)
        where = b"".join(struct.pack(">HHHII", i, 0, 1, at, len(units)) for i in ids)
        infos = (box(b"infe", b"\2\0\0\0", struct.pack(">HH", i, 0), b"av01\0") for i in ids)
        links = b"".join(struct.pack(">HB3B", i, 3, 1, 2, 0x83) for i in ids)
        properties = (
            box(b"ispe", bytes(4), struct.pack(">II", *claimed)),
            box(b"pixi", bytes(4), b"\1\x08"),
            config_box,
        )
        return box(
            b"meta", bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), b"\0\1"),
            box(b"iloc", bytes(4), b"\x44\0", struct.pack(">H", items), where),
            box(b"iinf", bytes(4), struct.pack(">H", items), *infos),
            box(b"iprp", box(b"ipco", *properties), box(b"ipma", bytes(4), struct.pack(">I", items), links)),
        )  # fmt: skip

    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", units)


SQUARE, TOWER = (SIDE, SIDE), (1, TALL)

CASES: dict[str, Callable[[], bytes]] = {
    # within the limits
    "JPEG, baseline, CMYK": lambda: saved("JPEG", "CMYK", SQUARE),
    "JPEG, progressive, CMYK": lambda: saved("JPEG", "CMYK", SQUARE, progressive=True),
    "JPEG, 31 scans": lambda: jpeg(SQUARE, 31),
    "JPEG, 31 scans of three components": lambda: jpeg(SQUARE, 31, samples=3),
    "JPEG, 500 scans of 4 megapixels": lambda: jpeg((2000, 2000), 500),
    "JPEG, 10 scans, arithmetic": lambda: jpeg(SQUARE, 10, arithmetic=True),
    "PNG, 16-bit RGBA, interlaced": lambda: png(SQUARE, 16, 6, interlaced=True),
    "PNG, 16-bit RGB with tRNS": lambda: png(SQUARE, 16, 2, bytes(6)),
    "PNG, 16-bit RGB with tRNS, 1 pixel wide": lambda: png(TOWER, 16, 2, bytes(6)),
    "PNG, 8-bit grey with tRNS, 1 pixel wide": lambda: png(TOWER, 8, 0, bytes(2)),
    "WebP": lambda: saved("WEBP", "RGB", SQUARE, method=0),
    "WebP, lossless with alpha": lambda: saved("WEBP", "RGBA", SQUARE, method=0, lossless=True),
    "GIF, interlaced": lambda: saved("GIF", "P", SQUARE, interlace=1),
    "BMP, RLE4": lambda: bmp((6400, 6400), 4, runs((6400, 6400), 255)),
    "BMP, RLE8, each run one pixel": lambda: bmp((3000, 1300), 8, runs((3000, 1300), 1)),
    "TIFF, 16-bit RGBA": lambda: tiff(SQUARE, 8, zeros(8 * SIDE * SIDE), samples=4, bits=16),
    "TIFF, 16-bit RGBA, LZMA": lambda: tiff(SQUARE, 34925, lzma.compress(bytes(8 * SIDE * SIDE)), samples=4, bits=16),
    "TIFF, floats": lambda: tiff(SQUARE, 8, zeros(4 * SIDE * SIDE), bits=32, floats=True),
    "TIFF, 16-bit RGBA, 1 pixel wide": lambda: tiff(TOWER, 8, zeros(8 * TALL), samples=4, bits=16),
    "TIFF, 100 000 strips": lambda: tiff((1, 100_000), 1, b"\1", rows=1, pieces=100_000),
    "TIFF, a tile of 64 megapixels": lambda: tiff((16, 16), 8, zeros(SIDE * SIDE), tile=SQUARE),
    "TIFF, 30 of them": lambda: tiff((16 * 30, 16), 8, zeros(64_000_000), tile=(16, 4_000_000), pieces=30),
    "TIFF, JPEG of 10 scans": lambda: tiff(SQUARE, 7, jpeg(SQUARE, 10)),
    "TIFF, 2 000 strips share 1 MB": lambda: tiff((1, 2000), 8, _nothing(190_000), rows=1, pieces=2000),
    "AVIF": lambda: saved("AVIF", "RGBA", SQUARE, speed=10),
    "AVIF, claims 16 × 16": lambda: avif((16, 16), SQUARE),
    # beyond them
    "JPEG, 490 scans": lambda: jpeg(SQUARE, 490),
    "JPEG, 499 scans, arithmetic": lambda: jpeg(SQUARE, 499, arithmetic=True),
    "PNG with tRNS, 1 × 64 000 000": lambda: png((1, SIDE * SIDE), 8, 0, bytes(2)),
    "BMP, RLE4 of 64 megapixels": lambda: bmp(SQUARE, 4, runs(SQUARE, 255)),
    "BMP, 19 MB of ends of lines": lambda: bmp((6, 9_500_000), 8, b"\0\0" * 9_500_000),
    "TIFF, 100 tiles of 64 megapixels": lambda: tiff((1600, 16), 8, zeros(64_000_000), tile=(16, 4_000_000), pieces=100),
    "TIFF, JPEG of 99 scans": lambda: tiff(SQUARE, 7, jpeg(SQUARE, 99)),
    "TIFF, 20 000 strips share 1 MB": lambda: tiff((1, 20_000), 8, _nothing(190_000), rows=1, pieces=20_000),
    "AVIF, claims 16 × 16, is 16 000 × 16 000": lambda: avif((16, 16), (16_000, 16_000)),
    "AVIF, 16 frames of 16 megapixels": lambda: avif((4000, 4000), (4000, 4000), frames=16),
    "AVIF, 400 pictures in one": lambda: avif((1000, 1000), (1000, 1000), items=400),
}  # fmt: skip


def _nothing(blocks: int) -> bytes:
    """Deflated: so many empty blocks, then one byte."""
    return (
        b"\x78\1"
        + b"\0\0\0\xff\xff" * blocks
        + b"\1\1\0\xfe\xff\7"
        + struct.pack(">I", zlib.adler32(b"\7"))
    )


# The measure


class Cost(NamedTuple):
    outcome: str
    cpu_s: float
    mb: float
    """by which the peak of the process's memory grew"""


def cost(data: bytes, unlimited: bool = False) -> Cost:
    """In a process of its own. ``unlimited``: of what the decoder would refuse as too costly, too."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.costly", "--measure", file.name, *["--unlimited"] * unlimited],
            stdout=subprocess.PIPE,
            check=True,
        )  # fmt: skip
    return Cost(*json.loads(done.stdout))


def measure(path: Path, unlimited: bool) -> Cost:
    limits, data = Decode(), path.read_bytes()
    if unlimited:
        limits = Decode(max_pixels=1 << 40)
    set_up(limits.max_pixels)
    Image.init()
    before, began = peak_mb(), time.process_time()
    try:
        decode_rgb(data, read_header(data, limits), (0, 0))
        outcome = "decoded"
    except InvalidRecord as error:
        outcome = error.reason
    return Cost(outcome, round(time.process_time() - began, 3), round(peak_mb() - before))


def peak_mb() -> float:
    """Of this program; ru_maxrss also remembers the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=Path, help="a folder of images to be measured as well")
    parser.add_argument("--only", default="", help="cases with this word in their name")
    parser.add_argument("--unlimited", action="store_true", help="decode what is refused, too")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.unlimited)))
        return
    from benchmarks.harness import emit  # late: it imports the whole line, and a measure needs none

    for name, make in CASES.items():
        if options.only in name:
            data = make()
            emit("costly", case=name, bytes=len(data), **cost(data, options.unlimited)._asdict())
    worst: dict[str, tuple[Cost, str]] = {}
    files = sorted(p for p in options.files.rglob("*") if p.is_file()) if options.files else []
    for path in files:
        data = path.read_bytes()
        found = cost(data), str(path.relative_to(options.files))
        format = sniff(data) or "none"
        worst[format] = max(worst.get(format, found), found, key=lambda one: one[0].cpu_s)
    for format, (found, file) in worst.items():
        emit("costly", files=len(files), worst=format, file=file, **found._asdict())


if __name__ == "__main__":
    main()
