"""The whole config: what its sections say together, and the names that follow from it."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import socket
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_serializer, field_validator, model_validator

from streamer.config.kind import HEADER_FIELDS, EmbedderConfig, FieldRule, HeadConfig, RuleConfig
from streamer.config.section import (
    BatchConfig,
    DeadLetters,
    Decode,
    Dedup,
    Fetch,
    Http,
    Kafka,
    Output,
    Section,
)
from streamer.config.value import DatasetName, Device


def _dedup_off(value: Any) -> Any:
    if value is None:
        raise ValueError("write `dedup: off` to run without deduplication")
    if value is False or value == "off":  # YAML 1.1 reads a bare `off` as false
        return None
    if not isinstance(value, Mapping | Dedup):
        raise ValueError(
            f"must be a section, for example {{threshold: 0.9}}, or off (got {value!r})"
        )
    return value


def _dedup_schema(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [
        {"enum": ["off", False]} if kind == {"type": "null"} else kind for kind in schema["anyOf"]
    ]


class Config(Section):
    dataset: DatasetName
    writer: str = Field("auto", validate_default=True)
    kafka: Kafka
    fetch: Fetch = Fetch()
    decode: Decode = Decode()
    embedder: EmbedderConfig
    heads: tuple[HeadConfig, ...] = ()
    filters: tuple[RuleConfig, ...] = ()
    dedup: Annotated[
        Dedup | None, BeforeValidator(_dedup_off), Field(json_schema_extra=_dedup_schema)
    ] = Dedup()
    """None: `dedup: off`."""
    output: Output
    batch: BatchConfig = BatchConfig()
    dead_letters: DeadLetters = DeadLetters()
    http: Http = Http()
    device: Device = "auto"

    @field_validator("writer")
    @classmethod
    def _writer_is_a_name(cls, value: str) -> str:
        name = (
            re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-") or "writer"
            if value == "auto"
            else value
        )
        if not re.fullmatch(r"[a-z0-9-]{1,100}", name):
            raise ValueError("a writer is named with a-z, 0-9 and - only")
        return name

    @field_serializer("dedup")
    def _write_dedup(self, dedup: Dedup | None) -> Any:
        return "off" if dedup is None else dedup

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        names = [head.name for head in self.heads]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(
                f"heads: two heads are named {twice[0]!r}; give one of them another name"
            )
        scores = [f"{n}_score" for n in names]
        known = [*HEADER_FIELDS, *scores]
        for i, rule in enumerate(self.filters):
            if (
                isinstance(rule, FieldRule)
                and rule.field not in known
                and not rule.field.startswith("metadata.")
            ):
                close = difflib.get_close_matches(rule.field, known, n=1)
                hint = (
                    f"did you mean {close[0]!r}?"
                    if close
                    else f"known are {', '.join(known)} and metadata.NAME"
                )
                raise ValueError(
                    f"filters.{i}.field: {rule.field!r} is no field of this pipeline; {hint}"
                )
        if unreachable := self.fetch.unreachable():
            raise ValueError(unreachable)
        if self.output.shard_records > self.output.epoch_records:
            object.__setattr__(self.output, "shard_records", self.output.epoch_records)
        if self.kafka.topic in self.own_topics():
            raise ValueError(
                f"kafka.topic: {self.kafka.topic!r} is one of the dataset's own topics; choose another dataset name"
            )
        return self

    # Names that follow from the dataset

    @property
    def group(self) -> str:
        return f"streamer.{self.dataset}"

    @property
    def claims_topic(self) -> str:
        return f"{self.dataset}.claims"

    @property
    def commits_topic(self) -> str:
        return f"{self.dataset}.commits"

    @property
    def dead_topic(self) -> str:
        return f"{self.dataset}.dead"

    @property
    def transactional_id(self) -> str:
        return f"streamer.{self.dataset}.{self.writer}"

    @property
    def group_instance_id(self) -> str | None:
        """The static member id, or None for dynamic membership."""
        chosen = self.kafka.group_instance_id
        if chosen == "auto":
            return self.writer if "KUBERNETES_SERVICE_HOST" in os.environ else None
        return chosen

    def own_topics(self) -> tuple[str, str, str]:
        return self.claims_topic, self.commits_topic, self.dead_topic

    def digest(self) -> str:
        """16 hex digits over what decides an outcome: embedder, heads, filters, decode limits,
        dedup, formats."""
        parts = self.model_dump(
            mode="json",
            by_alias=True,
            include={"fetch", "decode", "embedder", "heads", "filters", "dedup"},
        )
        if self.dedup is not None:
            parts["dedup"] = self.dedup.model_dump(
                mode="json", exclude={"snapshots", "snapshot_every"}
            )
        parts["formats"] = self.output.formats
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
