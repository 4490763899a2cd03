"""How fast is the line alone? Real Kafka, real claims, real shards and commits; decode and
embedding are replaced.

`SeededDecoder` does not look into the image: it hands on the first bytes of the value.
`SeededModel` turns them into a unit vector by one matrix product: a vector seeded from the bytes.
Everything else is the line that `streamer run` runs. The producer is outside of the measure.

    python3 tasks.py bench spine [--records 200000] [--dim 64] [--bytes 1000] [--duplicates 0.3] [--dedup off]
    python3 tasks.py bench spine --round-trip 20ms [--in-flight 1]          # the broker is far away (`benchmarks/distance.py`)
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from benchmarks.harness import Watched, distant_broker, emit, fill, run_line  # isort: skip - before numpy

import numpy as np

from streamer import app
from streamer.config import Config
from streamer.config import parse as parse_config
from streamer.decode.decoder import Prior
from streamer.kafka import claims
from streamer.model.model import Embedded
from streamer.records import U8, Decoded, Facts, Record, Sample
from streamer.units import parse_duration
from streamer.wire.envelope import parse
from streamer.wire.limits import Limits, weight

SEED_BYTES = 32
JPEG_MAGIC = b"\xff\xd8\xff\xe0"


class SeededDecoder:
    """In place of `streamer.decode.decoder.Decoder`: the envelope is parsed, the claim looked up
    and the bytes are hashed as in the real one; the pixels are the first bytes of the value."""

    def __init__(
        self,
        config: Config,
        _transform: Any,
        _decode: Any,
        _draft_size: Any,
        _rules: Any,
        prior: Prior,
        *_rest: Any,
    ) -> None:
        self._content_type = config.kafka.default_content_type
        self._limits = Limits.of(config.decode)
        self._prior = prior
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="decode")

    def submit(self, records: list[Record]) -> Future[list[Decoded]]:
        return self._threads.submit(self._decode, records)

    def _decode(self, records: list[Record]) -> list[Decoded]:
        rows: list[Decoded] = []
        for record in records:
            prior = self._prior(record.partition, record.offset)
            envelope = parse(record, self._content_type, self._limits)
            data = envelope.image
            assert isinstance(data, bytes)
            facts = Facts(
                envelope.id, envelope.text, envelope.url, envelope.metadata, data, "jpg", 640, 480, hashlib.sha256(data).hexdigest()
            )  # fmt: skip
            pixels = np.frombuffer(data, np.uint8, SEED_BYTES)
            rows.append(Sample(record, facts, pixels, [], prior, nbytes=weight(record, facts)))
        return rows

    def overrun(self, limit: float) -> None:
        pass

    def held(self) -> Counter[str]:
        return Counter()

    def forget(self) -> None:
        pass

    def close(self) -> None:
        self._threads.shutdown()


class SeededModel:
    """In place of `streamer.model.model.Model`: bytes → unit vector, one matrix product a batch."""

    score_names: tuple[str, ...] = ()
    fingerprints: Mapping[str, str] = {}
    pixels_shape = None
    jpeg_decoders = ()
    device = "cpu"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.embedder = self
        self.fingerprint = f"seeded-{dim}"
        self.transform = self.decode = None
        self.draft_size = (1, 1)
        self._mix = np.random.default_rng(1).standard_normal((SEED_BYTES, dim)).astype(np.float32)

    def memory(self) -> dict[str, float]:
        return {}

    def submit(self, pixels: Sequence[U8]) -> SeededModel._Ticket:
        seeds = np.stack(pixels).astype(np.float32) - 127.5
        vectors = seeds @ self._mix
        return self._Ticket(vectors, np.linalg.norm(vectors, axis=1))

    class _Ticket:
        def __init__(self, vectors: np.ndarray, lengths: np.ndarray) -> None:
            self._embedded = Embedded((vectors / lengths[:, None]).astype(np.float16), lengths, {})

        def result(self) -> Embedded:
            return self._embedded


def values(records: int, nbytes: int, duplicates: float) -> list[bytes]:
    """Random bytes; the given share are copies of an earlier record, one of the last 10 000."""
    rng = np.random.default_rng(7)
    made: list[bytes] = []
    for _ in range(records):
        if made and rng.random() < duplicates:
            made.append(made[-int(rng.integers(1, min(len(made), 10_000) + 1))])
        else:
            made.append(JPEG_MAGIC + rng.bytes(nbytes - len(JPEG_MAGIC)))
    return made


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--records", type=int, default=200_000)
    options.add_argument("--dim", type=int, default=64)
    options.add_argument("--bytes", type=int, default=1_000)
    options.add_argument("--duplicates", type=float, default=0.3)
    options.add_argument("--partitions", type=int, default=4)
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--dedup", choices=("on", "off"), default="on")
    options.add_argument("--probe", choices=("certified", "calibrated"), default="certified")
    options.add_argument(
        "--in-flight",
        type=int,
        default=claims.MAX_IN_FLIGHT,
        help="batches whose claims may be on their way at once",
    )
    options.add_argument(
        "--round-trip",
        type=parse_duration,
        metavar="20ms",
        help="to a broker of its own, through a proxy that delays",
    )
    given = options.parse_args()
    claims.MAX_IN_FLIGHT = given.in_flight
    with (
        distant_broker(given.round_trip) as (near, servers),
        tempfile.TemporaryDirectory() as folder,
    ):
        name = f"spine-{uuid.uuid4().hex[:8]}"
        fill(
            near,
            f"{name}-in",
            values(given.records, given.bytes, given.duplicates),
            given.partitions,
        )
        config = parse_config({
            "dataset": name, "writer": "bench", "kafka": {"bootstrap_servers": servers, "topic": f"{name}-in"},
            "embedder": {"type": "timm", "model": "replaced by SeededModel"}, "dedup": {"threshold": 0.97, "probe": given.probe, "snapshots": "off"} if given.dedup == "on" else "off",
            "output": {"path": folder}, "batch": {"size": given.batch, "linger": "20ms"}, "http": {"host": "127.0.0.1", "port": 0},
        })  # fmt: skip
        parts = app.Parts(
            load_model=lambda _: SeededModel(given.dim), decoder=SeededDecoder, metrics=Watched
        )  # type: ignore[arg-type,return-value]
        result = run_line(config, parts)
    emit(
        "spine",
        replaced="decode and embedding: a vector seeded from the bytes",
        **{**vars(given), **result},
    )


if __name__ == "__main__":
    main()
