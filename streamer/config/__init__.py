"""The configuration: one YAML file, read top to bottom in the order a
record travels.

    source.py    file, environment and ``--set``, merged     `load`
    mistake.py   all of it validated at once                 `parse`
    root.py      what the sections say together              `Config`
    section.py   the sections          kind.py   embedder, heads and filters          value.py   sizes, durations, names

What needs weights, a device or a broker is checked later, by who uses it.
"""

from streamer.config.kind import (
    HEADER_FIELDS,
    AestheticHead,
    CustomEmbedder,
    CustomHead,
    CustomRule,
    FieldRule,
    HeadConfig,
    LinearHeadConfig,
    MlpHeadConfig,
    NsfwHead,
    RuleConfig,
    TimmEmbedder,
)
from streamer.config.mistake import parse
from streamer.config.root import Config
from streamer.config.section import (
    BatchConfig,
    DeadLetters,
    Decode,
    Dedup,
    Fetch,
    Http,
    Kafka,
    Output,
)
from streamer.config.source import load, merge
from streamer.config.value import matcher

__all__ = [
    "HEADER_FIELDS",
    "AestheticHead",
    "BatchConfig",
    "Config",
    "CustomEmbedder",
    "CustomHead",
    "CustomRule",
    "DeadLetters",
    "Decode",
    "Dedup",
    "Fetch",
    "FieldRule",
    "HeadConfig",
    "Http",
    "Kafka",
    "LinearHeadConfig",
    "MlpHeadConfig",
    "NsfwHead",
    "Output",
    "RuleConfig",
    "TimmEmbedder",
    "load",
    "matcher",
    "merge",
    "parse",
]
