"""The configuration (section 8 of the design): one YAML file, read top to bottom in the order a record travels.

`load` merges the file, ``STREAMER__SECTION__KEY=value`` from the environment and ``--set section.key=value``, in
that order, and validates the whole at once. What needs weights, a device or a broker is checked later, by who uses it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_validator,
)

from streamer.errors import ConfigError
from streamer.units import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_size


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms"


# Checked before the types of a union are tried: one mistake, one error.


def _scalar(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"{value!r} is neither a text, a number nor true or false")
    return value


def _start(value: Any) -> Any:
    if value in ("earliest", "latest") or isinstance(value, date):  # YAML makes dates and times of what looks like one
        return value
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (ValueError, AttributeError):
        raise ValueError(f"{value!r} is neither earliest, latest nor a time like 2026-01-31T12:00:00Z") from None


_SIZE_SCHEMA = WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": SIZE_PATTERN}]})
_DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN})


def _snapshots(value: Any) -> Any:
    return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


Size = Annotated[int, BeforeValidator(parse_size), _SIZE_SCHEMA]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0), PlainSerializer(_duration), _DURATION_SCHEMA]
Scalar = Annotated[str | int | float | bool, BeforeValidator(_scalar)]
PluginPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]

ENV_PREFIX = "STREAMER__"
HEADER_FIELDS = ("width", "height", "min_side", "max_side", "pixels", "aspect_ratio", "bytes", "format", "text", "text_length", "id", "url")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Kafka(Section):
    bootstrap_servers: str = Field(min_length=1)
    topic: str = Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")
    start: Annotated[Literal["earliest", "latest"] | datetime, BeforeValidator(_start)] = "earliest"
    default_content_type: str = "image/jpeg"
    group_instance_id: str | None = "auto"
    client: dict[str, Scalar] = {}

    @field_validator("start")
    @classmethod
    def _start_has_a_zone(cls, value: str | datetime) -> str | datetime:
        if isinstance(value, datetime) and value.tzinfo is None:
            return value.replace(tzinfo=timezone.utc)
        return value


class Fetch(Section):
    """References (``uri``). Nothing is fetched unless its scheme *and* its host are listed.

    ``hosts``: for http and https host names, ``*.example.com``, addresses and networks (CIDR); bucket names for s3; for file the allowed
    folders (they begin with "/"). A name that leads to a private address is refused unless that address or network is listed, too.
    """

    schemes: tuple[Literal["file", "http", "https", "s3"], ...] = ()
    hosts: tuple[str, ...] = ()
    max_bytes: Size = 20_000_000
    timeout: Seconds = 10.0
    concurrency: int = Field(16, ge=1, le=1024)


class Decode(Section):
    threads: int = Field(6, ge=1, le=256)
    max_bytes: Size = 20_000_000
    max_pixels: int = Field(64_000_000, ge=1)


class TimmEmbedder(Section):
    type: Literal["timm"] = "timm"
    model: str
    pretrained: bool = True
    checkpoint: str | None = None
    """A path, ``hf://ORG/REPO/FILE[@REVISION]`` or ``https://…#sha256=HEX``; replaces ``pretrained``."""
    features: Literal["auto", "pool", "head"] = "auto"
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    normalize: bool = True
    compile: bool = False


class CustomEmbedder(Section):
    type: PluginPath
    args: dict[str, Any] = {}


class AestheticHead(Section):
    type: Literal["aesthetic"]
    name: Name = "aesthetic"
    weights: str | None = None


class NsfwHead(Section):
    type: Literal["nsfw"]
    name: Name = "nsfw"
    weights: str | None = None
    variant: Literal["port", "exact"] = "port"


class LinearHeadConfig(Section):
    type: Literal["linear"]
    name: Name
    weights: str
    requires_normalized: bool = True
    output: Literal["identity", "sigmoid"] = "identity"


class MlpHeadConfig(Section):
    type: Literal["mlp"]
    name: Name
    weights: str
    requires_normalized: bool = True
    activation: Literal["relu", "gelu", "none"] = "relu"
    output: Literal["identity", "sigmoid"] = "identity"


class CustomHead(Section):
    type: PluginPath
    name: Name
    args: dict[str, Any] = {}


EMBEDDERS = ("timm",)
HEADS = ("aesthetic", "nsfw", "linear", "mlp")


def _tag_of(kinds: tuple[str, ...], default: str | None = None) -> Any:
    """A discriminator on ``type``, so that one typo gives one error; `_explain` names the fix."""

    def tag(value: Any) -> str | None:
        kind = value.get("type", default) if isinstance(value, Mapping) else getattr(value, "type", None)
        return "custom" if isinstance(kind, str) and ":" in kind else kind if kind in kinds else None

    return Discriminator(tag)


EmbedderConfig = Annotated[Annotated[TimmEmbedder, Tag("timm")] | Annotated[CustomEmbedder, Tag("custom")], _tag_of(EMBEDDERS, "timm")]
HeadConfig = Annotated[
    Annotated[AestheticHead, Tag("aesthetic")]
    | Annotated[NsfwHead, Tag("nsfw")]
    | Annotated[LinearHeadConfig, Tag("linear")]
    | Annotated[MlpHeadConfig, Tag("mlp")]
    | Annotated[CustomHead, Tag("custom")],
    _tag_of(HEADS),
]


class FieldRule(Section):
    """One rule over one field. Bounds are inclusive; NaN or missing fails the rule."""

    field: str
    name: str = ""
    action: Literal["remove", "flag"] = "remove"
    equals: Scalar | None = None
    in_: tuple[Scalar, ...] | None = Field(None, alias="in", min_length=1)
    matches: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _has_one_test(self) -> FieldRule:
        tests = [n for n in ("equals", "in_", "matches") if getattr(self, n) is not None]
        bounds = [n for n in ("at_least", "at_most") if getattr(self, n) is not None]
        if len(tests) + bool(bounds) != 1:
            raise ValueError("give exactly one test: equals, in, matches, or at_least and/or at_most")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"nothing is at_least {self.at_least:g} and at_most {self.at_most:g}")
        if self.matches is not None:
            try:
                re.compile(self.matches)
            except re.error as error:
                raise ValueError(f"matches is not a regular expression: {error}") from None
        if not self.name:
            object.__setattr__(self, "name", self.field)
        return self


class CustomRule(Section):
    type: PluginPath
    name: str = Field(min_length=1)
    action: Literal["remove", "flag"] = "remove"
    args: dict[str, Any] = {}


def _rule_tag(value: Any) -> str:
    has_type = "type" in value if isinstance(value, Mapping) else hasattr(value, "type")
    return "custom" if has_type else "field"


RuleConfig = Annotated[Annotated[FieldRule, Tag("field")] | Annotated[CustomRule, Tag("custom")], Discriminator(_rule_tag)]


class Dedup(Section):
    threshold: float = Field(0.95, gt=0, le=0.999)
    """τ: cosine similarity at or above which two records are near-duplicates. fp16 vectors carry no more than 0.999."""
    action: Literal["remove", "flag"] = "remove"
    probe: Literal["certified", "calibrated"] = "certified"
    """certified finds what brute force finds; calibrated looks into fewer cells, and shows the recall that leaves."""
    capacity: int | None = Field(None, ge=24_576)
    """The most winners that are kept; beyond it the oldest are forgotten, and what resembles them is new again. None: all are kept."""
    train_at: Literal["auto"] | Annotated[int, Field(ge=1024)] = "auto"
    """Winners at which the index makes its first k-means cells."""
    device: Device = "auto"

    @property
    def search(self) -> str:
        """``certified``, or what may make a search miss a near-duplicate."""
        misses = (["calibrated"] if self.probe == "calibrated" else []) + ([f"capacity {self.capacity}"] if self.capacity else [])
        return ", ".join(misses) or "certified"

    snapshots: Annotated[str, BeforeValidator(_snapshots), Field(min_length=1)] = "dataset"
    """Where the dedup state is kept, so that a start need not read the whole claim log: a path or URI, ``dataset`` (beside it) or ``off``."""
    snapshot_every: int = Field(200_000, ge=1)
    """Positions of the claim log; more where that is less than a tenth of the winners."""


class Output(Section):
    path: str = Field(min_length=1)
    formats: tuple[str, ...] = ("jpg", "png", "webp")
    shard_records: int = Field(10_000, ge=1)
    shard_bytes: Size = 1_000_000_000
    epoch_records: int = Field(50_000, ge=1)
    seal_after: Seconds = 60.0


class BatchConfig(Section):
    size: int = Field(256, ge=1, le=65_536)
    linger: Seconds = 0.05


class DeadLetters(Section):
    max_ratio: float = Field(0.2, ge=0, le=1)


class Http(Section):
    host: str = "0.0.0.0"
    port: int = Field(9400, ge=0, le=65_535)


def _dedup_off(value: Any) -> Any:
    if value is None:
        raise ValueError("write `dedup: off` to run without deduplication")
    return None if value is False or value == "off" else value  # YAML 1.1 reads a bare `off` as false


def _dedup_schema(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"enum": ["off", False]} if kind == {"type": "null"} else kind for kind in schema["anyOf"]]


class Config(Section):
    dataset: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,199}$")
    writer: str = Field("auto", validate_default=True)
    kafka: Kafka
    fetch: Fetch = Fetch()
    decode: Decode = Decode()
    embedder: EmbedderConfig
    heads: tuple[HeadConfig, ...] = ()
    filters: tuple[RuleConfig, ...] = ()
    dedup: Annotated[Dedup | None, BeforeValidator(_dedup_off), Field(json_schema_extra=_dedup_schema)] = Dedup()
    """None: `dedup: off`."""
    output: Output
    batch: BatchConfig = BatchConfig()
    dead_letters: DeadLetters = DeadLetters()
    http: Http = Http()
    device: Device = "auto"

    @field_validator("writer")
    @classmethod
    def _writer_is_a_name(cls, value: str) -> str:
        name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-") or "writer" if value == "auto" else value
        if not re.fullmatch(r"[a-z0-9-]{1,100}", name):
            raise ValueError("a writer is named with a-z, 0-9 and - only")
        return name

    @field_serializer("dedup")
    def _write_dedup(self, dedup: Dedup | None) -> Any:
        return "off" if dedup is None else dedup

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        names = [head_name(h) for h in self.heads]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"heads: two heads are named {twice[0]!r}; give one of them another name")
        scores = [f"{n}_score" for n in names]
        known = [*HEADER_FIELDS, *scores]
        for i, rule in enumerate(self.filters):
            if isinstance(rule, FieldRule) and rule.field not in known and not rule.field.startswith("metadata."):
                close = difflib.get_close_matches(rule.field, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)} and metadata.NAME"
                raise ValueError(f"filters.{i}.field: {rule.field!r} is no field of this pipeline; {hint}")
        if self.output.shard_records > self.output.epoch_records:
            object.__setattr__(self.output, "shard_records", self.output.epoch_records)
        if self.kafka.topic in self.own_topics():
            raise ValueError(f"kafka.topic: {self.kafka.topic!r} is one of the dataset's own topics; choose another dataset name")
        return self

    # Names that follow from the dataset (section 4.2)

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
        """16 hex digits over what decides an outcome: embedder, heads, filters, decode limits, dedup, formats."""
        parts = self.model_dump(mode="json", by_alias=True, include={"fetch", "decode", "embedder", "heads", "filters", "dedup"})
        if self.dedup is not None:
            parts["dedup"] = self.dedup.model_dump(mode="json", exclude={"snapshots", "snapshot_every"})
        parts["formats"] = self.output.formats
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def head_name(head: AestheticHead | NsfwHead | LinearHeadConfig | MlpHeadConfig | CustomHead) -> str:
    return head.name


def load(path: str | Path, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> Config:
    """File, then environment, then ``section.key=value`` overrides. Raises ConfigError naming every mistake and its place.

    Values of the latter two are read as YAML, but those of single properties in ``kafka.client`` are taken as they are written.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}. Give its path with -c or STREAMER_CONFIG.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {_place(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: the config must be a mapping; see README.md for an example")
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(ENV_PREFIX):
            _set(raw, name[len(ENV_PREFIX) :].lower().split("__"), value, name)
    for override in overrides:
        dotted, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {re.split('[:{ ]', override)[0]}: write it as section.key=value")
        keys = dotted.split(".", 2) if dotted.startswith("kafka.client.") else dotted.split(".")  # names of properties have dots
        _set(raw, keys, value, f"--set {dotted}")
    return parse(raw, str(path))


def parse(raw: Mapping[str, Any], where: str = "config") -> Config:
    """Validates a mapping. Raises ConfigError: one line per mistake, ``WHERE: path.to.key: what is wrong; the fix``."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        mistakes = error.errors()
        misspelt = {(*e["loc"][:-1], _closest(e["loc"])) for e in mistakes if e["type"] == "extra_forbidden"}
        told = [e for e in mistakes if e["type"] != "missing" or e["loc"] not in misspelt]
        raise ConfigError("\n".join(f"{where}: {_explain(e)}" for e in told)) from None


def _set(raw: dict[str, Any], path: list[str], text: str, source: str) -> None:
    at: Any = raw
    try:
        for key in path[:-1]:
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        is_property = path[:-1] == ["kafka", "client"]  # a password may look like any kind of YAML
        at[int(path[-1]) if isinstance(at, list) else path[-1]] = text if is_property else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: cannot be set: not YAML: {_place(error)}") from None
    except IndexError:
        items = f"0 to {len(at) - 1}" if at else "and there are none"
        raise ConfigError(f"{source}: cannot be set: the list's items are numbered {items}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{source}: cannot be set: {error}") from None


def _place(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong and where, without the text around it, which may be a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    said = ", ".join(part for part in (error.context, error.problem) if part)
    said = re.sub(r"'[^']*'", lambda quoted: quoted[0] if _GRAMMAR.fullmatch(quoted[0]) else "'…'", said)
    return f"{said} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"


_GRAMMAR = re.compile(r"'(.|\\.|<.*>)'")
"""What YAML's messages quote of its own grammar; everything else is a name of the file's: an alias, an anchor, a tag."""


_SECRET = re.compile(r"password|secret|token|key|basic\.auth|^sasl\.(?!mechanisms?$)")
HIDDEN = "***"


def is_secret(name: str) -> bool:
    """Whether a property of ``kafka.client`` may be one that nobody should see."""
    return _SECRET.search(name.lower()) is not None


_TAG_AT = {"embedder": 1, "heads": 2, "filters": 2}
"""Where in an error's location pydantic names the kind that `type` chose, which is no key of the file."""


def _explain(error: Any) -> str:
    loc = error["loc"]
    path = ".".join(str(part) for i, part in enumerate(loc) if i != _TAG_AT.get(loc[0]))
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        close = _closest(loc)
        message = f"unknown key; did you mean {close!r}?" if close else f"unknown key; known here are {', '.join(_known(loc))}"
    elif error["type"] == "missing":
        message = "is missing; add it"
    elif error["type"] == "union_tag_not_found":
        path, message = f"{path}.type", _unknown_type(error)
    elif error["type"] != "value_error":
        message = f"{message} (got {error['input']!r})"
    if loc[:2] == ("kafka", "client") and (len(loc) == 2 or is_secret(str(loc[2]))):
        message = f"must be {'properties and their values' if len(loc) == 2 else 'a text, a number, true or false'} (got {HIDDEN})"
    return f"{path}: {message}" if path else message


def _unknown_type(error: Any) -> str:
    kinds = EMBEDDERS if error["loc"][0] == "embedder" else HEADS
    kind = error["input"].get("type") if isinstance(error["input"], Mapping) else None
    close = difflib.get_close_matches(str(kind), kinds, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(kinds)}, or pkg.mod:Class"
    return f"is missing; {hint}" if kind is None else f"unknown type {kind!r}; {hint}"


def _closest(loc: tuple[Any, ...]) -> str:
    """The nearest known key; empty if none is near."""
    return next(iter(difflib.get_close_matches(str(loc[-1]), _known(loc), n=1)), "")


def _known(loc: tuple[Any, ...]) -> list[str]:
    """The keys that may stand where the error's last one does, found by walking the schema along its path."""
    section: type[BaseModel] | None = Config
    sections: dict[str, type[BaseModel]] = {
        "kafka": Kafka, "fetch": Fetch, "decode": Decode, "dedup": Dedup, "output": Output, "batch": BatchConfig,
        "dead_letters": DeadLetters, "http": Http, "timm": TimmEmbedder, "aesthetic": AestheticHead, "nsfw": NsfwHead,
        "linear": LinearHeadConfig, "mlp": MlpHeadConfig, "custom": CustomHead, "field": FieldRule,
    }  # fmt: skip
    for part in loc[:-1]:
        section = sections.get(str(part), section)
    return [f.alias or n for n, f in section.model_fields.items()] if section else []
