"""Embedder, heads and filters: what ``type`` chooses, each kind with keys of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from streamer.config.section import Section
from streamer.config.value import Name, PluginPath, Scalar, check_format, matcher

HEADER_FIELDS = (
    "width",
    "height",
    "min_side",
    "max_side",
    "pixels",
    "aspect_ratio",
    "bytes",
    "format",
    "text",
    "text_length",
    "id",
    "url",
)
"""What a rule can look at besides scores and metadata."""


class TimmEmbedder(Section):
    type: Literal["timm"] = "timm"
    model: str
    pretrained: bool = True
    checkpoint: str | None = None
    """A path, ``hf://ORG/REPO/FILE[@REVISION]`` or ``https://…#sha256=HEX``; replaces
    ``pretrained``."""
    features: Literal["auto", "pool", "head"] = "auto"
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    normalize: bool = True
    compile: bool = False


class CustomEmbedder(Section):
    type: PluginPath
    args: dict[str, Any] = Field({})


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
    args: dict[str, Any] = Field({})


EMBEDDERS = ("timm",)
HEADS = ("aesthetic", "nsfw", "linear", "mlp")


def _tag_of(kinds: tuple[str, ...], default: str | None = None) -> Any:
    """A discriminator on ``type``, so that one typo gives one error; `mistake.py` names the fix."""

    def tag(value: Any) -> str | None:
        kind = (
            value.get("type", default)
            if isinstance(value, Mapping)
            else getattr(value, "type", None)
        )
        return (
            "custom" if isinstance(kind, str) and ":" in kind else kind if kind in kinds else None
        )

    return Discriminator(tag)


EmbedderConfig = Annotated[
    Annotated[TimmEmbedder, Tag("timm")] | Annotated[CustomEmbedder, Tag("custom")],
    _tag_of(EMBEDDERS, "timm"),
]
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
            raise ValueError(
                "give exactly one test: equals, in, matches, or at_least and/or at_most"
            )
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"nothing is at_least {self.at_least:g} and at_most {self.at_most:g}")
        if self.matches is not None:
            matcher(self.matches)
        if self.field == "format":
            for value in (self.equals, *(self.in_ or ())):
                if value is not None:
                    check_format(value)
        if not self.name:
            object.__setattr__(self, "name", self.field)
        return self


class CustomRule(Section):
    type: PluginPath
    name: str = Field(min_length=1)
    action: Literal["remove", "flag"] = "remove"
    args: dict[str, Any] = Field({})


def _rule_tag(value: Any) -> str:
    has_type = "type" in value if isinstance(value, Mapping) else hasattr(value, "type")
    return "custom" if has_type else "field"


RuleConfig = Annotated[
    Annotated[FieldRule, Tag("field")] | Annotated[CustomRule, Tag("custom")],
    Discriminator(_rule_tag),
]
