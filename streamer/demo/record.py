"""What the demo streams: every photograph, crops and copies of it, and records that a filter or a
decoder must refuse.

Everything is derived from the photographs by fixed rules and one seed: the same Pillow gives the
same bytes, in the same order.
"""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageEnhance, ImageOps

from streamer.demo.photograph import Photograph

Kind = Literal["original", "crop", "copy", "unwanted", "damaged"]
"""``crop``: a part that shows something else than the whole. ``copy``: the same picture again, as
other bytes. ``unwanted``: made to meet one of the demo's filters. ``damaged``: no decoder or parser
may accept it."""
PARTITIONS = 2
SEED = 3

Picture = Image.Image
Headers = Mapping[str, str | bytes | None]
_Size = tuple[float, float, float, float]


@dataclass(frozen=True)
class DemoRecord:
    """One Kafka record to be, and what is known about it beforehand."""

    id: str
    kind: Kind
    scene: str
    """Records of different scenes are no near-duplicates; empty where there is no telling."""
    copy_of: str
    """For a copy, the id of the original or crop it repeats."""
    caption: str
    made: str
    """How it was made, in words; empty for what nobody made for the demo."""
    data: bytes | Path
    """The image bytes, which ``value`` holds or wraps, or the file that has them: for the contact
    sheet."""
    value: bytes | None
    headers: Headers
    partition: int
    """−1: any."""

    def picture(self) -> bytes:
        """The image bytes; empty if their file is gone, or is no image of its own."""
        if isinstance(self.data, bytes):
            return self.data
        try:
            return self.data.read_bytes()
        except OSError:
            return b""


COPIES: dict[str, tuple[str, Callable[[Picture], bytes]]] = {
    "jpeg-q85": ("saved as JPEG, quality 85", lambda image: encoded(image, "jpg", quality=85)),
    "jpeg-q60": ("saved as JPEG, quality 60", lambda image: encoded(image, "jpg", quality=60)),
    "webp-q80": ("saved as WebP, quality 80", lambda image: encoded(image, "webp", quality=80)),
    "half-size": (
        "half the width and height, PNG",
        lambda image: encoded(_scaled(image, 0.5), "png"),
    ),
    "brighter": (
        "12% brighter",
        lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.12), "jpg", quality=92),
    ),
    "trimmed": (
        "3% cut off each side",
        lambda image: encoded(_part(image, (0.03, 0.03, 0.97, 0.97)), "jpg", quality=92),
    ),
    "mirrored": (
        "left and right exchanged",
        lambda image: encoded(ImageOps.mirror(image), "jpg", quality=92),
    ),
}
CROPS: dict[str, _Size] = {
    "top-left": (0.0, 0.0, 0.55, 0.55),
    "top-right": (0.45, 0.0, 1.0, 0.55),
    "bottom-left": (0.0, 0.45, 0.55, 1.0),
    "bottom-right": (0.45, 0.45, 1.0, 1.0),
}
_CROP_COPIES: dict[str, tuple[str, str, Callable[[Picture], bytes]]] = {
    "top-left": (
        "webp-q75",
        "saved as WebP, quality 75",
        lambda image: encoded(image, "webp", quality=75),
    ),
    "bottom-right": (
        "scaled",
        "scaled to 80%",
        lambda image: encoded(_scaled(image, 0.8), "jpg", quality=90),
    ),
}


def records(photographs: Sequence[Photograph]) -> list[DemoRecord]:
    """All records in the order to send them. All of one scene go to one partition, a copy after
    what it repeats, so that which of two near-duplicates comes first does not depend on how the
    partitions interleave."""
    dice = random.Random(SEED)
    scenes = list(dict.fromkeys(photograph.scene for photograph in photographs))
    found: list[DemoRecord] = []
    for number, photograph in enumerate(photographs):
        partition = scenes.index(photograph.scene) % PARTITIONS
        with Image.open(io.BytesIO(photograph.data)) as opened:
            image = opened.convert("RGB")
        darkroom = _Darkroom(photograph, image, number, partition)
        found += darkroom.pictures()
        found += darkroom.unwanted()
    found += _damaged(photographs, dice)
    return _in_order(found, dice)


def encoded(image: Picture, format: str, **options: int) -> bytes:
    """``image`` as jpg, png, webp, gif or bmp bytes."""
    output = io.BytesIO()
    image.save(output, {"jpg": "JPEG"}.get(format, format.upper()), **options)
    return output.getvalue()


def _scaled(image: Picture, factor: float) -> Picture:
    return image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS
    )


def _part(image: Picture, box: _Size) -> Picture:
    left, top, right, bottom = box
    return image.crop(
        (
            round(left * image.width),
            round(top * image.height),
            round(right * image.width),
            round(bottom * image.height),
        )
    )


def _binary(
    data: bytes, format: str, headers: Headers
) -> tuple[bytes, dict[str, str | bytes | None]]:
    return data, {"content-type": f"image/{'jpeg' if format == 'jpg' else format}", **headers}


def _format(data: bytes) -> str:
    return (
        "png"
        if data[:4] == b"\x89PNG"
        else "webp"
        if data[:4] == b"RIFF"
        else "gif"
        if data[:3] == b"GIF"
        else "jpg"
    )


@dataclass(frozen=True)
class _Darkroom:
    """Makes the records of one photograph."""

    photograph: Photograph
    image: Picture
    number: int
    """Of the photograph, to take turns."""
    partition: int

    def pictures(self) -> Iterator[DemoRecord]:
        """The photograph, its copies, its crops, and copies of some crops."""
        name = self.photograph.name
        yield self._print("original", "original", "", self.photograph.data)
        for label, (made, make) in COPIES.items():
            yield self._print(label, "copy", made, make(self.image), copy_of=f"{name}/original")
        for corner, box in CROPS.items():
            crop, part = _part(self.image, box), f"the {corner.replace('-', ' ')} part"
            yield self._print(corner, "crop", part, encoded(crop, "jpg", quality=92))
            if corner in _CROP_COPIES:
                label, made, make = _CROP_COPIES[corner]
                yield self._print(
                    f"{corner}-{label}",
                    "copy",
                    f"{part}, {made}",
                    make(crop),
                    copy_of=f"{name}/{corner}",
                )

    def unwanted(self) -> Iterator[DemoRecord]:
        """A thumbnail, and in turn a strip, a missing caption, another language, a format that is
        not asked for."""
        image, number = self.image, self.number
        small = image.copy()
        small.thumbnail((64, 64))
        middle = _part(image, (0.2, 0.2, 0.8, 0.8))
        yield self._print("thumbnail", "unwanted", "a thumbnail", encoded(small, "jpg", quality=90))
        if image.width >= 400:
            strip = image.crop((0, image.height // 2, image.width, image.height // 2 + 90))
            yield self._print(
                "strip", "unwanted", "a narrow strip", encoded(strip, "jpg", quality=92)
            )
        if number % 2 == 0:
            caption = ("", "IMG_042", "photo")[number % 3]
            yield self._print(
                "no-caption",
                "unwanted",
                "the middle",
                encoded(middle, "jpg", quality=92),
                caption=caption,
            )
        else:
            caption = f"Détail d'une photographie : {self.photograph.name}"
            yield self._print(
                "in-french",
                "unwanted",
                "the middle",
                encoded(middle, "jpg", quality=92),
                caption=caption,
                lang="fr",
            )
        if number % 3 == 0:
            yield self._print("gif", "unwanted", "as GIF", encoded(_scaled(middle, 0.5), "gif"))

    def _print(
        self,
        label: str,
        kind: Kind,
        made: str,
        data: bytes,
        *,
        copy_of: str = "",
        caption: str | None = None,
        lang: str = "en",
    ) -> DemoRecord:
        """A record in one of the three ways to write one: mostly binary, some as JSON, some as
        CloudEvents."""
        id = f"{self.photograph.name}/{label}"
        text = (
            ", ".join(filter(None, (self.photograph.caption, made))) if caption is None else caption
        )
        metadata = {"lang": lang, "credit": self.photograph.credit}
        spread = zlib.crc32(id.encode())
        headers: dict[str, str | bytes | None]
        value: bytes
        if spread % 9 == 0:
            body = {
                "id": id,
                "image": base64.b64encode(data).decode(),
                "text": text,
                "metadata": metadata,
            }
            value, headers = json.dumps(body).encode(), {"content-type": "application/json"}
        else:
            named = {
                "ce_id" if spread % 7 == 0 else "id": id,
                "text": text,
                **{f"meta-{key}": word for key, word in metadata.items()},
            }
            value, headers = _binary(data, _format(data), named)
        return DemoRecord(
            id,
            kind,
            self.photograph.scene,
            copy_of,
            text,
            made,
            data,
            value,
            headers,
            self.partition,
        )


def _damaged(photographs: Sequence[Photograph], dice: random.Random) -> list[DemoRecord]:
    made: list[
        tuple[str, str, bytes, bytes | None, dict[str, str | bytes | None]]
    ] = []  # id, caption, data, value, headers

    def image(label: str, caption: str, data: bytes, format: str = "jpg") -> None:
        made.append(
            (
                f"damaged/{label}",
                caption,
                data,
                *_binary(
                    data, format, {"id": f"damaged/{label}", "text": caption, "meta-lang": "en"}
                ),
            )
        )

    def other(
        label: str, caption: str, value: bytes | None, headers: dict[str, str | bytes | None]
    ) -> None:
        made.append((f"damaged/{label}", caption, value or b"", value, headers))

    for photograph in photographs[::3]:
        with Image.open(io.BytesIO(photograph.data)) as opened:
            jpeg = encoded(opened.convert("RGB"), "jpg", quality=85)
        image(
            f"{photograph.name}-cut-short",
            f"{photograph.caption}, the upload broke off",
            jpeg[: len(jpeg) * 3 // 5],
        )
    for photograph in [p for p in photographs if p.format == "png"][:3]:
        image(
            f"{photograph.name}-flipped-bytes",
            f"{photograph.caption}, bytes changed on the way",
            _flipped(photograph.data),
            "png",
        )
    for side in (60_000, 2_000_000_000):
        image(
            f"header-{side}", f"A header that promises {side} × {side} pixels", _bomb(side), "png"
        )
    for size in (1_000, 40_000):
        image(f"noise-{size}", f"{size} random bytes", dice.randbytes(size))
    page = b"<!doctype html><html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>"
    image("error-page", "The web server's error page instead of the picture", page)
    other("no-value", "", None, {"id": "damaged/no-value"})
    other("empty-value", "", b"", {"id": "damaged/empty-value", "content-type": "image/jpeg"})
    other("broken-json", "", b'{"image": "/9j/4AAQ', {"content-type": "application/json"})
    other(
        "json-without-image",
        "",
        b'{"id": "damaged/json-without-image", "text": "nothing to see"}',
        {"content-type": "application/json"},
    )
    other(
        "not-base64",
        "",
        b'{"id": "damaged/not-base64", "image": "@@@ not base64 @@@"}',
        {"content-type": "application/json"},
    )
    other(
        "elsewhere",
        "",
        b'{"id": "damaged/elsewhere", "uri": "http://images.example/cat.jpg"}',
        {"content-type": "application/json"},
    )
    other(
        "avro",
        "",
        b"\x00\x00\x00\x00\x07\x0edamaged",
        {"content-type": "application/vnd.confluent.avro"},
    )
    other("video", "", b"\x00\x00\x00\x18ftypmp42", {"content-type": "video/mp4"})
    other(
        "caption-not-utf8",
        "",
        photographs[0].data[:2_000],
        {"content-type": "image/jpeg", "text": b"caf\xe9 au lait"},
    )
    return [
        DemoRecord(id, "damaged", "", "", caption, "", data, value, headers, number % PARTITIONS)
        for number, (id, caption, data, value, headers) in enumerate(made)
    ]


def _flipped(png: bytes) -> bytes:
    """The first image-data chunk's checksum no longer fits."""
    start = png.index(b"IDAT") + 24
    return png[:start] + bytes(b ^ 0x5A for b in png[start : start + 16]) + png[start + 16 :]


def _bomb(side: int) -> bytes:
    """A well-formed PNG header of ``side`` × ``side`` RGB pixels with next to nothing behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1_000)))
        + chunk(b"IEND", b"")
    )


def _in_order(found: Iterable[DemoRecord], dice: random.Random) -> list[DemoRecord]:
    at: dict[str, float] = {}
    for record in found:  # a copy comes after what it repeats in `found`, too
        at[record.id] = (
            dice.uniform(at[record.copy_of], 1.0)
            if record.copy_of
            else dice.random() * (0.5 if record.kind != "damaged" else 1.0)
        )
    return sorted(found, key=lambda record: at[record.id])
