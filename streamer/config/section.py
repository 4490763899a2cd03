"""The sections of the config that have one shape, in the order a record travels; `kind.py` has
those whose shape `type` chooses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from streamer.config.value import (
    ContentType,
    Device,
    Formats,
    Host,
    Scalar,
    Seconds,
    Size,
    Start,
    TopicName,
    is_network,
    must_be,
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Kafka(Section):
    bootstrap_servers: str = Field(min_length=1)
    topic: TopicName
    start: Start = "earliest"
    default_content_type: ContentType = "image/jpeg"
    group_instance_id: str | None = "auto"
    give_up_after: Seconds = 900.0
    """A replica waits for brokers that are away so long, and then ends."""
    on_expired: Literal["stop", "skip"] = "stop"
    """Records that expired before they were decided."""
    on_unreadable: Literal["stop", "skip"] = "stop"
    """A batch of the topic that the client cannot read."""
    client: dict[str, Scalar] = {}


class Fetch(Section):
    """References (``uri``). Nothing is fetched unless its scheme *and* its host are listed.

    ``hosts``: for http and https host names, ``*.example.com``, addresses and networks (CIDR), each
    for the ports 80 and 443, or for the one that follows it (``HOST:PORT``, ``[::1]:PORT``); bucket
    names for s3; for file the allowed folders (they begin with "/"). A name that leads to a private
    address is refused unless that address or network is listed, too.
    """

    schemes: tuple[Literal["file", "http", "https", "s3"], ...] = ()
    hosts: tuple[Host, ...] = ()
    max_bytes: Size = 20_000_000
    timeout: Seconds = 10.0
    give_up_after: Seconds = 600.0
    """A reference that fails for so long, while its server answers others, is invalid."""
    concurrency: int = Field(16, ge=1, le=1024)

    def unreachable(self) -> str:
        """What is listed and can never match anything; empty if there is no such thing."""
        if self.hosts and not self.schemes:
            return (
                "fetch.schemes: is empty, so fetch.hosts has no effect; add http, https, s3 or file"
            )
        folders = [host for host in self.hosts if host.startswith("/")]
        names = [host for host in self.hosts if host not in folders]
        buckets = [n for n in names if not (is_network(n) or n.startswith("*.") or ":" in n)]
        for scheme in self.schemes:
            wanted, listed = {
                "file": ("the folders that may be read; they begin with /", folders),
                "s3": ("the buckets", buckets),
            }.get(scheme, ("host names, addresses or networks", names))
            if not listed:
                return f"fetch.hosts: no entry applies to {scheme}; add {wanted}"
        return ""


class Decode(Section):
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where baseline JPEGs are decoded: auto is the GPU that embeds, where it can; all other images
    are decoded on the CPU."""
    pixels: Literal["exact", "fast"] = "exact"
    """Of what the CPU decodes: exact are timm's own, fast are within 2 of them and cost less. Part
    of the embedder's fingerprint."""
    threads: int = Field(6, ge=1, le=256)
    timeout: Seconds = 30.0
    """For the decoding of one image; then the process ends, and sets it aside when that happens
    again."""
    max_bytes: Size = 20_000_000
    max_pixels: int = Field(64_000_000, ge=1)
    max_text_bytes: Size = 1_000_000
    """Of a caption, and of one header or field."""
    max_metadata_bytes: Size = 4_000_000
    """Of all headers of a record, and of a JSON value without its image."""


def _snapshots(value: Any) -> Any:
    return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


class Dedup(Section):
    threshold: float = Field(0.95, gt=0, le=0.999)
    """τ: cosine similarity at or above which two records are near-duplicates. fp16 vectors carry no
    more than 0.999."""
    action: Literal["remove", "flag"] = "remove"
    probe: Literal["certified", "calibrated"] = "certified"
    """certified finds what brute force finds; calibrated looks into fewer cells, and shows the
    recall that leaves."""
    capacity: int | None = Field(None, ge=24_576)
    """The most winners that are kept; beyond it the oldest are forgotten, and what resembles them
    is new again. None: all are kept."""
    train_at: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1024)],
        must_be("auto or a number of at least 1024"),
    ] = "auto"
    """Winners at which the index makes its first k-means cells."""
    device: Device = "auto"
    snapshots: Annotated[
        str,
        BeforeValidator(_snapshots),
        Field(min_length=1),
        must_be("dataset, off, a path or a URI"),
    ] = "dataset"
    """Where the dedup state is kept, so that a start need not read the whole claim log: a path or
    URI, ``dataset`` (beside it) or ``off``."""
    snapshot_every: int = Field(200_000, ge=1)
    """Positions of the claim log; more where that is less than a tenth of the winners."""

    @property
    def search(self) -> str:
        """``certified``, or what may make a search miss a near-duplicate."""
        misses = (["calibrated"] if self.probe == "calibrated" else []) + (
            [f"capacity {self.capacity}"] if self.capacity else []
        )
        return ", ".join(misses) or "certified"


class Output(Section):
    path: str = Field(min_length=1)
    formats: Formats = ("jpg", "png", "webp")
    shard_records: int = Field(10_000, ge=1)
    shard_bytes: Size = 1_000_000_000
    epoch_records: int = Field(50_000, ge=1)
    seal_after: Seconds = 60.0
    retry_for: Seconds = 600.0
    """So long a storage that is away is waited for."""


class BatchConfig(Section):
    size: int = Field(256, ge=1, le=65_536)
    linger: Seconds = 0.05


class DeadLetters(Section):
    max_ratio: float = Field(0.2, ge=0, le=1)
    on_flood: Literal["pause", "stop"] = "pause"
    """What becomes of a partition with more invalid records than that: it is not read until
    somebody has looked, or the process ends."""


class Http(Section):
    host: str = "0.0.0.0"
    port: int = Field(9400, ge=0, le=65_535)
