"""`TimmImageEmbedder`: any timm model as an embedder, with the model's own preprocessing.

Which features (``features: auto``) A CLIP image tower in timm keeps the projection into the space
    shared with text as its *classifier*: without it (``num_classes=0``) OpenAI's ViT-L/14 gives
    1024 numbers that no CLIP head knows. Every other classifier gives logits over labels, which are
    no embedding. So ``auto`` is ``head`` for CLIP towers and ``pool`` (``num_classes=0``) for
    everything else. A CLIP tower is a model whose architecture or tag says so (``clip``,
    ``pe_core``) and whose classifier is neither absent, as wide as an ImageNet label set, nor
    labelled: ``….laion2b_ft_in1k`` is a classifier again. `is_clip_tower` is checked over all of
    timm's registry in the tests.

Preprocessing timm's evaluation transform for ``resolve_model_data_config(model)``, cut in two: its
    geometry (resize, crop or pad) runs on decode threads and gives the very pixels timm gives;
    scaling and normalisation run on the device, in float32, by the same operations.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Set
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import timm.data
import timm.data.transforms
import timm.models
import torch
from PIL import Image

from streamer.errors import ConfigError
from streamer.model import checkpoint as checkpoints
from streamer.model import fast, laion, weights
from streamer.model.embedder import ImageEmbedder
from streamer.model.geometry import LONGEST, Geometry
from streamer.records import U8

Features = Literal["auto", "pool", "head"]
Precision = Literal["fp32", "fp16", "bf16"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_LABEL_SETS = frozenset({1000, 11221, 11821, 19167, 19168, 21841, 21842, 21843, 115217})
"""Widths of the ImageNet and BAMBOO label sets in timm's registry."""
_BATCH_NORM = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_DRAFT_GAP = 2
"""A JPEG is decoded at no less than twice the size it is resized to: Pillow's ``thumbnail`` keeps
the same gap."""

log = logging.getLogger(__name__)


class TimmImageEmbedder(ImageEmbedder):
    """``model`` is any timm name (``arch``, ``arch.tag``, ``hf-hub:ORG/REPO``, ``local-dir:PATH``).

    ``checkpoint`` (a path, ``hf://…`` or ``https://…#sha256=…``) replaces the pretrained weights;
    with neither the weights are random, but the same in every process. Blocks while weights are
    fetched. Raises ConfigError, TemporaryError (no network) and DependencyError (cache).
    """

    def __init__(
        self,
        model: str,
        *,
        pretrained: bool = True,
        checkpoint: str | None = None,
        features: Features = "auto",
        precision: Precision = "fp32",
        normalize: bool = True,
        compile: bool = False,
        pixels: Literal["exact", "fast"] = "exact",
        where: str = "embedder",
    ) -> None:
        source = _find(model, pretrained and checkpoint is None, where)
        if features == "auto":
            features = (
                "head" if is_clip_tower(source.architecture, source.tag, source.cfg) else "pool"
            )
        if features == "head" and not source.cfg.get("num_classes"):
            raise ConfigError(f"{where}.features: {model} has no head; use features: pool")
        net = _create(source, features, checkpoint, pretrained, where)
        data_config = timm.data.resolve_model_data_config(net)
        self.model = model
        self.features = features
        self.normalized = normalize
        self.family = (
            laion.family_of(source.architecture, source.tag) if features == "head" else model
        )
        self.fingerprint = weights.digest(
            net.state_dict(),
            source.architecture,
            features,
            str(normalize),
            json.dumps(data_config, sort_keys=True),
            *(() if pixels == "exact" else (pixels,)),
        )
        self._geometry = _geometry(data_config)
        self.geometry = Geometry.of(data_config)
        if pixels == "fast" and self.geometry is None:
            raise ConfigError(
                f"decode.pixels: fast: {model} does more to an image than resize and crop it; "
                "use exact"
            )
        self._is_fast = pixels == "fast"
        self._crops_centre = data_config["crop_mode"] == "center"
        self.draft_size = _draft_size(data_config)
        self._net = net
        self._mean = torch.tensor(data_config["mean"]).view(1, -1, 1, 1)
        self._std = torch.tensor(data_config["std"]).view(1, -1, 1, 1)
        self._dtype = _DTYPES[precision]
        self._compile = compile
        self.device = torch.device("cpu")
        self.dim = (
            source.cfg["num_classes"]
            if features == "head"
            else self._measure(data_config["input_size"], where)
        )

    def transform(self, image: Image.Image) -> U8:
        """Any thread. The pixels of timm's evaluation transform before it scales and normalises
        them; with ``pixels="fast"`` within 2 of them."""
        image = _bounded(image) if self._crops_centre else image
        if self._is_fast and self.geometry is not None:
            return fast.resize(image, self.geometry)
        return np.asarray(self._geometry(image), dtype=np.uint8)

    @torch.inference_mode()
    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        x = (
            pixels.permute(0, 3, 1, 2).float().div_(255).sub_(self._mean).div_(self._std)
        )  # the operations and order of timm's own
        x = x.to(self._dtype)
        if self._compile and len(x) > 1:
            torch._dynamo.mark_dynamic(x, 0)  # batches vary in length; one graph for all of them
        vectors: torch.Tensor = self._net(x).float()
        return torch.nn.functional.normalize(vectors, dim=1) if self.normalized else vectors

    def place(self, device: torch.device) -> None:
        """Also casts to the precision, except batch norms, whose running statistics do not survive
        it, and compiles."""
        super().place(device)
        self._net.to(dtype=self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in self._net.modules():
            if isinstance(module, _BATCH_NORM):
                module.float()
        if self._compile:
            self._net.compile()
        if device.type == "cuda" and self._dtype is torch.float32:
            torch.backends.cudnn.allow_tf32 = (
                False  # on by default for convolutions; fp32 is meant as said
            )

    @torch.inference_mode()
    def _measure(self, input_size: tuple[int, int, int], where: str) -> int:
        out = self._net(torch.zeros(1, *input_size))
        if out.ndim != 2:
            raise ConfigError(
                f"{where}.model: {self.model} gives a {tuple(out.shape)} map per image, no vector; choose a model that pools"
            )
        return int(out.shape[1])


def is_clip_tower(architecture: str, tag: str, cfg: dict[str, Any]) -> bool:
    """True when the classifier of this timm model is CLIP's projection (see the top of this
    module)."""
    name = f"{architecture}.{tag}"
    classes = cfg.get("num_classes") or 0
    return (
        ("clip" in name or "pe_core" in name)
        and classes > 0
        and classes not in _LABEL_SETS
        and not cfg.get("label_names")
    )


@dataclass(frozen=True)
class _Source:
    """What timm knows about a model before it is made."""

    architecture: str
    tag: str
    cfg: dict[str, Any]
    args: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    """Where ``local-dir:`` or the hub's cache keeps config and weights."""


def _find(model: str, fetch: bool, where: str) -> _Source:
    prefix, _, rest = model.partition(":")
    if rest and prefix in ("hf-hub", "hf_hub"):
        repo, _, revision = rest.partition("@")
        folder = weights.hub_file(repo, "config.json", revision or None, f"{where}.model").parent
        if fetch:
            _first_of(
                repo, ("model.safetensors", "pytorch_model.bin"), revision or None, f"{where}.model"
            )
        return _in_folder(folder, where)
    if rest and prefix == "local-dir":
        return _in_folder(Path(rest).expanduser(), where)
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        raise ConfigError(f"{where}.model: timm has no model {model!r}; {_hint(model)}")
    if not fetch and not tag:
        tag = laion.own_tag(architecture)
    try:
        known = timm.models.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    except RuntimeError:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
        raise ConfigError(
            f"{where}.model: {architecture!r} has no weights named {tag!r}; known: {', '.join(tags) or 'none'}"
        ) from None
    if known is None:
        raise ConfigError(f"{where}.model: {model!r} is a deprecated timm name; {_hint(model)}")
    cfg = known.to_dict()
    return _Source(architecture, cfg.get("tag") or "", cfg)


def _hint(model: str) -> str:
    names = [*timm.list_pretrained(), *timm.list_models()]
    close = difflib.get_close_matches(model, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "timm.list_models() names all"


def _in_folder(folder: Path, where: str) -> _Source:
    """``config.json`` as timm's ``save_for_hf`` writes it; older ones have everything at the top."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        cfg = dict(config.get("pretrained_cfg", config))
        architecture = config["architecture"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where}.model: {folder}: holds no config.json of a timm model: {error}"
        ) from None
    if not timm.is_model(architecture):
        raise ConfigError(
            f"{where}.model: {folder}: is for {architecture!r}, which this timm {timm.__version__} does not have"
        )
    known = {f.name for f in fields(timm.models.PretrainedCfg)} - {
        "source",
        "file",
    }  # the weights are read by streamer.model.weights
    cfg |= {k: config[k] for k in ("num_classes", "label_names") if k in config}
    cfg = {k: v for k, v in cfg.items() if k in known}
    return _Source(
        architecture,
        cfg.get("tag") or "",
        {"num_classes": 1000, **cfg},
        config.get("model_args") or {},
        folder,
    )


def _create(
    source: _Source, features: Features, checkpoint: str | None, pretrained: bool, where: str
) -> torch.nn.Module:
    """The network in float32 on the CPU, for inference. num_classes=0 removes the classifier, by
    timm's convention."""
    classes = source.cfg["num_classes"] if features == "head" else 0
    args = {**source.args, "num_classes": classes, "pretrained_cfg": dict(source.cfg)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # where weights are random, all replicas have the same
        if pretrained and checkpoint is None:
            net = _create_pretrained(source, args, where)
        else:
            net = timm.create_model(source.architecture, **args)
    if checkpoint is not None:
        place = f"{where}.checkpoint"
        state = weights.read_state(weights.resolve(checkpoint, place), place)
        checkpoints.load(
            net, state, partial(_classifier_keys, source, net), f"{place}: {checkpoint}"
        )
    elif not pretrained:
        log.warning(
            "%s: %s has random weights (pretrained: false, no checkpoint): good for trials only",
            where,
            source.architecture,
        )
    net.eval().requires_grad_(False)
    return net


def _classifier_keys(source: _Source, net: torch.nn.Module) -> Set[str]:
    """Keys that timm's own model has and ``net``, perhaps made with num_classes=0, has not: a
    classifier may be of several layers and of any name."""
    classes = source.cfg["num_classes"] or 1
    args = {**source.args, "num_classes": classes, "pretrained_cfg": dict(source.cfg)}
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # no memory and no random numbers for what is thrown away
                whole = timm.create_model(source.architecture, **args)
        except (RuntimeError, TypeError):  # it computes with its tensors while it is made
            whole = timm.create_model(source.architecture, **args)
    keys: set[str] = whole.state_dict().keys() - net.state_dict().keys()
    return keys


def _create_pretrained(source: _Source, args: dict[str, Any], where: str) -> torch.nn.Module:
    """timm's own loading, but of tensors that `weights` fetched and read: bounded waits, one cache
    look-up, no pickle."""
    place = f"{where}.model"
    hub, custom = source.cfg.get("hf_hub_id"), source.cfg.get("custom_load") == "hf"
    if source.folder is not None:
        found = [
            p
            for n in ("model.safetensors", "pytorch_model.bin")
            if (p := source.folder / n).is_file()
        ]
        if not found:
            raise ConfigError(
                f"{place}: {source.folder} has neither model.safetensors nor pytorch_model.bin; add one, or set pretrained: false"
            )
        path = found[0]
    elif hub and not custom:
        named = source.cfg.get("hf_hub_filename")
        path = _first_of(
            hub, (named,) if named else ("model.safetensors", "pytorch_model.bin"), None, place
        )
    else:
        at = f"are at {source.cfg['url']}" if source.cfg.get("url") else "do not exist"
        raise ConfigError(
            f"{place}: the weights of {source.architecture} {at}, without a verifiable copy on the hub; "
            "give them as embedder.checkpoint (a path, or that address with #sha256=HEX), or set pretrained: false"
        )
    state = weights.read_state(path, place)
    try:
        net: torch.nn.Module = timm.create_model(
            source.architecture,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": state},
            **args,
        )
    except (RuntimeError, KeyError) as error:
        raise ConfigError(
            f"{place}: {path}: does not fit {source.architecture}: {str(error).splitlines()[0]}"
        ) from None
    return net


def _first_of(repo: str, names: tuple[str, ...], revision: str | None, where: str) -> Path:
    for name in names[:-1]:
        try:
            return weights.hub_file(repo, name, revision, where)
        except ConfigError:
            continue  # older repositories have the last one only
    return weights.hub_file(repo, names[-1], revision, where)


def _geometry(data_config: dict[str, Any]) -> Any:
    """timm's evaluation transform without its last steps, which turn an image into a tensor."""
    whole = timm.data.create_transform(**data_config, is_training=False, use_prefetcher=True)
    kinds = tuple(
        getattr(timm.data.transforms, n)
        for n in ("ToNumpy", "MaybePILToTensor")
        if hasattr(timm.data.transforms, n)
    )
    whole.transforms = [step for step in whole.transforms if not isinstance(step, kinds)]
    return whole


def _bounded(image: Image.Image) -> Image.Image:
    """The middle of a very long image. Its shorter side is resized to the model's and all but a
    square of the longer one is cut off again: 65500 × 1 pixels would be 13 GB in between. Up to an
    aspect ratio of `LONGEST` this changes nothing."""
    width, height = image.size
    longest = LONGEST * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, min(width, left + longest), min(height, top + longest)))


def _draft_size(data_config: dict[str, Any]) -> tuple[int, int]:
    """Square, as EXIF orientation may swap the sides later."""
    side = round(_DRAFT_GAP * max(data_config["input_size"][1:]) / data_config["crop_pct"])
    return side, side
