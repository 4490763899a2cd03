"""Makes small dataset folders the way the line does, for the tests of the sink and of the audit: no
Kafka, no model, real images."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock
from uuid import UUID

import numpy as np
from PIL import Image

from streamer.config import Output
from streamer.records import NEAR_DUPLICATE, DecidedBatch, Decision, Facts, Record
from streamer.sink.epoch import EpochWriter
from streamer.sink.storage import Storage
from streamer.wire.manifest import VERSION, Manifest

PIL_NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def image_bytes(seed: int, extension: str = "jpg", side: int = 24) -> bytes:
    """A real, small image that differs with ``seed``."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 8, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, PIL_NAMES[extension])
    return data.getvalue()


def accepted_facts(seed: int, extension: str = "jpg", **changes) -> Facts:
    data = image_bytes(seed, extension)
    known = {
        "id": f"photos/{seed}.{extension}",
        "text": f"fotografía número {seed}",
        "url": f"https://example.org/{seed}?a=1&b=“x”",
        "metadata": {"lang": "es", "n": seed, "nested": {"quote": '"'}},
        "data": data,
        "format": extension,
        "width": 32,
        "height": 24,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return Facts(**{**known, **changes})


class Maker:
    """A dataset in the making: keeps offsets, winners and claim positions like the line, decides
    duplicates by definition."""

    def __init__(
        self,
        storage: Storage,
        *,
        formats=("jpg", "png"),
        dim=16,
        threshold=0.9,
        seed=0,
        action="remove",
        score_names=("aesthetic",),
        **limits,
    ) -> None:
        self.storage = storage
        self.dataset = storage.root_uri.partition("?")[0].rpartition("/")[2]
        self.formats = formats
        self.dim = dim
        self.threshold = self.stated_threshold = threshold
        self.action = action
        self.score_names = score_names
        self.limits = Output(path="unused", **limits)
        self.rng = np.random.default_rng(seed)
        self.next: dict[int, int] = {}
        self.position = 1
        self.winners: list[tuple[int, int]] = []
        self.vectors = np.zeros((0, dim))
        self.last: dict[str, tuple[int, str]] = {}

    def batch(self, partition: int, n: int) -> DecidedBatch:
        records, facts, decisions, embedded = [], [], [], []
        vectors = np.zeros((n, self.dim), np.float16)
        for i in range(n):
            offset = self.next.get(partition, 0)
            self.next[partition] = offset + 1
            records.append(Record(partition, offset, 1_700_000_000_000 + offset, b"value", ()))
            known, decision = self._decide(partition, offset, vectors[i])
            facts.append(known)
            decisions.append(decision)
            embedded.append(bool(vectors[i].any()))
        scores = {
            name: np.where(embedded, self.rng.random(n), np.nan).astype(np.float32)
            for name in self.score_names
        }
        return DecidedBatch(records, facts, decisions, vectors, np.array(embedded, bool), scores)

    def _decide(self, partition: int, offset: int, vector: np.ndarray) -> tuple[Facts, Decision]:
        """Fills ``vector`` where the record gets as far as the model."""
        kind = self.rng.random()
        if kind < 0.1:
            return Facts(), Decision("invalid", "empty_value")
        known = accepted_facts(
            1000 * partition + offset, self.formats[int(self.rng.integers(len(self.formats)))]
        )
        if kind < 0.2:
            return known, Decision("filtered", "min_side", ("min_side",))
        fresh = self.rng.standard_normal(self.dim)
        if self.winners and kind < 0.5:
            fresh = self.vectors[int(self.rng.integers(len(self.winners)))] + 0.01 * fresh
        vector[:] = (fresh / np.linalg.norm(fresh)).astype(np.float16)
        if kind > 0.95:
            return known, Decision("filtered", "aesthetic_score", ("aesthetic_score",))
        similarity = self.vectors @ vector.astype(np.float64)
        near = np.flatnonzero(similarity >= self.threshold)
        if near.size:
            winner, of = self.winners[near[0]], float(similarity[near[0]])
            if self.action == "flag":
                return known, Decision("accepted", None, (NEAR_DUPLICATE,), winner, of)
            return known, Decision("duplicate", NEAR_DUPLICATE, (), winner, of)
        self.position += 1
        self.winners.append((partition, offset))
        self.vectors = np.vstack([self.vectors, vector.astype(np.float64)])
        return known, Decision("accepted", claim=self.position)

    def open(self, writer: str = "w-0") -> EpochWriter:
        epoch, _ = self.last.get(writer, (-1, None))
        uuid = str(UUID(bytes=self.rng.bytes(16)))
        files = EpochWriter(
            self.storage, dataset=self.dataset, writer=writer, epoch=epoch + 1, uuid=uuid, topic="photos", dim=self.dim,
            score_names=self.score_names, pipeline="0123456789abcdef", limits=self.limits, fingerprints={"threshold": self.stated_threshold},
        )  # fmt: skip
        files.epoch, files.uuid = epoch + 1, uuid
        return files

    def seal(self, writer: str = "w-0", sizes: dict[int, int] | None = None) -> Manifest:
        """One sealed epoch, not projected. ``sizes``: partition → records, in batches of 16; with 0
        only the offsets move on by one."""
        writing, ranges = self.open(writer), {}
        for partition, n in (sizes or {0: 40}).items():
            first = self.next.get(partition, 0)
            for at in range(0, n, 16):
                writing.append(self.batch(partition, min(16, n - at)))
            if not n:
                self.next[partition] = first + 1
            ranges[partition] = (first, self.next[partition])
        previous = self.last.get(writer, (-1, None))[1]
        self.last[writer] = (writing.epoch, writing.uuid)
        return Manifest(
            version=VERSION, dataset=self.dataset, writer=writer, epoch=writing.epoch, uuid=writing.uuid, previous_uuid=previous,
            partitions=ranges, skipped={}, counts=writing.counts, files=writing.seal(), claims_position=self.position,
            pipeline={"config": "0123456789abcdef"}, started="2026-01-01T00:00:00Z", sealed="2026-01-01T00:01:00Z",
        )  # fmt: skip

    def commit(self, writer: str = "w-0", sizes: dict[int, int] | None = None) -> Manifest:
        manifest = self.seal(writer, sizes)
        self.storage.project(manifest)
        return manifest


def make_dataset(path: str, *, name: str = "cats", **options) -> list[Manifest]:
    """Two writers, two partitions, five epochs, one of them without records."""
    maker = Maker(Storage(path, name), **options)
    return [
        maker.commit("w-0", {0: 40}),
        maker.commit("w-1", {1: 40}),
        maker.commit("w-0", {0: 30, 1: 30}),
        maker.commit("w-1", {1: 0}),
        maker.commit("w-1", {0: 20, 1: 20}),
    ]


@contextmanager
def s3_server() -> Iterator[str]:
    """A local S3 server with the bucket ``curated``; yields the query that leads to it,
    ``?endpoint_override=…&region=…``."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    keys = {
        "AWS_ACCESS_KEY_ID": "for-moto",
        "AWS_SECRET_ACCESS_KEY": "moto-takes-any",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with mock.patch.dict(os.environ, keys):
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            endpoint = f"http://{host}:{port}"
            fs.S3FileSystem(
                endpoint_override=endpoint, region="eu-west-1", allow_bucket_creation=True
            ).create_dir("curated")
            yield f"?endpoint_override={endpoint}&region=eu-west-1"
        finally:
            server.stop()
