"""The shipped heads. Each is made from a weights reference (path, ``hf://``,
``https://…#sha256=…``); see `weights.resolve` for what that raises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Literal

import numpy as np
import torch
from torch import nn

from streamer.errors import ConfigError
from streamer.files import file_sha256
from streamer.model import laion, weights
from streamer.model.head import Head

Activation = Literal["relu", "gelu", "none"]
Output = Literal["identity", "sigmoid"]
Variant = Literal["port", "exact"]
State = Mapping[str, torch.Tensor]

_V2_KEYS = {f"layers.{i}.{kind}" for i in (0, 2, 4, 6, 7) for kind in ("weight", "bias")}
_NSFW_KEY = re.compile(r"norm\.(mean|variance)|linear_\d+\.(weight|bias)|categorical\..*")


class AestheticClassifier(Head):
    """LAION's aesthetic predictors: V1 (one linear layer) and V2 (``sac+logos+ava1``, five).
    Nominally 0–10, unclipped.

    V2 has no activations between its layers, so that it is one linear map; the product is taken in
    float64 (largest difference to the five layers 9.5e-7, at 1/180 of the cost). ``weights=None``:
    the published head of ``family``.
    """

    range = (0.0, 10.0)

    def __init__(
        self,
        weights: str | None = None,
        *,
        name: str = "aesthetic",
        family: str = laion.L14,
        where: str = "heads",
    ) -> None:
        state, families = _published(weights, laion.AESTHETIC, family, where)
        if state.keys() not in (_V2_KEYS, {"weight", "bias"}):
            raise ConfigError(
                f"{where}.weights: {weights}: is neither LAION's aesthetic V1 nor V2 ({_some(state)}); use type: linear or mlp"
            )
        layers = _chain(state, f"{where}.weights: {weights}")
        self.name = name
        self.dim = layers[0].in_features
        self.families = families or _of_dim(self.dim, laion.AESTHETIC)
        self.fingerprint = _fingerprint("aesthetic", state)
        self._linear = collapse(layers)

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self._linear(embeddings)[:, 0]
        return scores


class NsfwClassifier(Head):
    """LAION's CLIP-based NSFW detector for OpenAI's ViT-L/14 and ViT-B/32: 0–1, 1 is unsafe.

    ``(x − mean) / √variance``, linear layers with ReLU between, sigmoid. The original is an
    AutoKeras model that took a few of its inputs (L/14: 180, 316, 413, 440, 644; B/32: 92, 133,
    312) for *categories*: it prints the float with six decimals and looks the text up in the
    vocabulary of its training set; what is not there is category 0. ``variant="port"`` feeds them
    as numbers, as every PyTorch port does; ``"exact"`` does what the original does. The training
    vectors were fp16, so that a float32 vector is hardly ever in the vocabulary: ``exact`` is for
    comparing with scores made by the original.
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        weights: str | None = None,
        *,
        variant: Variant = "port",
        name: str = "nsfw",
        family: str = laion.L14,
        where: str = "heads",
    ) -> None:
        state, families = _published(weights, laion.NSFW, family, where)
        place = f"{where}.weights: {weights}"
        if not {"norm.mean", "norm.variance"} <= state.keys() or (
            other := [k for k in state if not _NSFW_KEY.fullmatch(k)]
        ):
            found = _some(state) if "norm.mean" not in state else ", ".join(other)
            raise ConfigError(
                f"{place}: is not LAION's NSFW detector, whose keys are norm.mean, norm.variance and linear_N ({found})"
            )
        layers = _chain({k: v for k, v in state.items() if k.startswith("linear_")}, place)
        self.name = name
        self.dim = layers[0].in_features
        self.families = families or _of_dim(self.dim, laion.NSFW)
        self.fingerprint = _fingerprint(f"nsfw {variant}", state)
        self._mean = state["norm.mean"].float()
        self._scale = state["norm.variance"].float().sqrt()
        self._layers = _stacked(layers, nn.ReLU())
        self._vocabularies = nn.ModuleList(
            _vocabularies(state, place) if variant == "exact" else ()
        )

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:
        x = embeddings
        if len(self._vocabularies):
            x = embeddings.clone()
            for vocabulary in self._vocabularies:
                vocabulary(x)
        return torch.sigmoid(self._layers((x - self._mean) / self._scale))[:, 0]


class LinearHead(Head):
    """One linear layer of your own: a ``.pth`` or ``.safetensors`` file with a (1, d) or (d,)
    ``…weight`` and, if you like, a ``…bias``."""

    def __init__(
        self,
        weights: str,
        *,
        name: str,
        requires_normalized: bool = True,
        output: Output = "identity",
        where: str = "heads",
    ) -> None:
        state = _read(weights, where)
        place = f"{where}.weights: {weights}"
        state = {
            k: v.reshape(1, -1) if k.endswith("weight") and v.ndim == 1 else v
            for k, v in state.items()
        }
        layers = _chain(state, place)
        if len(layers) != 1:
            raise ConfigError(f"{place}: holds {len(layers)} layers; use type: mlp")
        self.name = name
        self.dim = layers[0].in_features
        self.requires_normalized = requires_normalized
        self.range = (0.0, 1.0) if output == "sigmoid" else None
        self.fingerprint = _fingerprint(f"linear {output}", state)
        self._linear = layers[0]
        self._output = nn.Sigmoid() if output == "sigmoid" else nn.Identity()

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self._output(self._linear(embeddings))[:, 0]
        return scores


class MlpHead(Head):
    """A chain of linear layers of your own, in the natural order of their names (``layers.2``
    before ``layers.10``), the last of width 1.

    ``activation`` stands between the layers, ``output`` after the last.
    """

    def __init__(
        self,
        weights: str,
        *,
        name: str,
        requires_normalized: bool = True,
        activation: Activation = "relu",
        output: Output = "identity",
        where: str = "heads",
    ) -> None:
        state = _read(weights, where)
        layers = _chain(state, f"{where}.weights: {weights}")
        self.name = name
        self.dim = layers[0].in_features
        self.requires_normalized = requires_normalized
        self.range = (0.0, 1.0) if output == "sigmoid" else None
        self.fingerprint = _fingerprint(f"mlp {activation} {output}", state)
        between: dict[str, nn.Module] = {
            "relu": nn.ReLU(),
            "gelu": nn.GELU(),
            "none": nn.Identity(),
        }
        self._layers = _stacked(layers, between[activation])
        self._output = nn.Sigmoid() if output == "sigmoid" else nn.Identity()

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self._output(self._layers(embeddings))[:, 0]
        return scores


def collapse(layers: list[nn.Linear]) -> nn.Linear:
    """Linear layers without anything between → the one linear layer that they are, multiplied in
    float64."""
    weight = torch.eye(layers[0].in_features, dtype=torch.float64)
    bias = torch.zeros(layers[0].in_features, dtype=torch.float64)
    for layer in layers:
        bias = layer.weight.double() @ bias + layer.bias.double()
        weight = layer.weight.double() @ weight
    return _linear(weight, bias)


class _Vocabulary(nn.Module):
    """One categorical input: replaces column ``dim`` by the category of its value printed with six
    decimals, 0 where it has none.

    A float32 times 10⁶ is exact in float64 (24 + 20 bits), and both it and C's ``%f`` round half to
    even, so that the integer is the text.
    """

    keys: torch.Tensor
    categories: torch.Tensor

    def __init__(self, dim: int, keys: torch.Tensor, categories: torch.Tensor) -> None:
        super().__init__()
        self.dim = dim
        order = torch.argsort(keys)
        self.register_buffer("keys", keys[order].long())
        self.register_buffer("categories", categories[order].float())

    def forward(self, x: torch.Tensor) -> None:
        text = torch.round(x[:, self.dim].double() * 1e6).long()
        at = torch.searchsorted(self.keys, text).clamp_(max=len(self.keys) - 1)
        x[:, self.dim] = torch.where(self.keys[at] == text, self.categories[at], 0.0)


def _vocabularies(state: State, place: str) -> list[_Vocabulary]:
    """From the file, else from the package's table for LAION's own two heads."""
    if "categorical.dims" in state:
        dims = state["categorical.dims"].tolist()
        return [
            _Vocabulary(d, state[f"categorical.{d}.keys_1e6"], state[f"categorical.{d}.index"])
            for d in dims
        ]
    with np.load(str(files("streamer.model").joinpath("nsfw_categories.npz"))) as tables:
        own = weights.digest(dict(state)).removeprefix("sha256:")
        dims = [
            int(n.split("/")[1])
            for n in tables.files
            if n.startswith(f"{own}/") and n.endswith("/keys_1e6")
        ]
        if not dims:
            raise ConfigError(
                f"{place}: variant: exact needs the categories of the original, which are known for LAION's own L/14 and B/32 heads only; "
                "use variant: port, or a file with categorical.* tables"
            )
        return [
            _Vocabulary(
                d,
                torch.from_numpy(tables[f"{own}/{d}/keys_1e6"]),
                torch.from_numpy(tables[f"{own}/{d}/index"].astype(np.int32)),
            )
            for d in dims
        ]


def _read(reference: str, where: str) -> dict[str, torch.Tensor]:
    place = f"{where}.weights"
    return weights.read_state(weights.resolve(reference, place), place)


def _published(
    reference: str | None, known: tuple[laion.Published, ...], family: str, where: str
) -> tuple[dict[str, torch.Tensor], frozenset[str]]:
    """The state, and the families it was trained for as far as the file's sha256 tells (else none)."""
    place = f"{where}.weights"
    if reference is None:
        default = next((p for p in known if p.family == family), None)
        if default is None:
            models = " or ".join(laion.MODELS[f] for f in dict.fromkeys(p.family for p in known))
            raise ConfigError(
                f"{where}: LAION has no such head for {family}; use embedder.model: {models}, or give {place}"
            )
        reference = default.reference
    path = weights.resolve(reference, place)
    state = weights.read_state(path, place)
    sha256 = file_sha256(path)
    return state, frozenset(p.family for p in known if p.sha256 == sha256)


def _of_dim(dim: int, known: tuple[laion.Published, ...]) -> frozenset[str]:
    return frozenset(p.family for p in known if laion.DIMS[p.family] == dim)


def _chain(state: State, place: str) -> list[nn.Linear]:
    """Weights and biases in the natural order of their names → linear layers that fit each other,
    ending in width 1. Raises ConfigError."""
    names = sorted((k.removesuffix("weight") for k in state if k.endswith("weight")), key=_natural)
    extra = state.keys() - {f"{n}{kind}" for n in names for kind in ("weight", "bias")}
    if not names or extra or any(state[f"{n}weight"].ndim != 2 for n in names):
        raise ConfigError(
            f"{place}: is no chain of linear layers ({_some(state)}); its keys must be pairs of NAME.weight (out, in) and NAME.bias"
        )
    layers: list[nn.Linear] = []
    for name in names:
        weight = state[f"{name}weight"]
        bias = state.get(f"{name}bias", torch.zeros(len(weight)))
        if bias.numel() != len(weight) or (layers and layers[-1].out_features != weight.shape[1]):
            raise ConfigError(
                f"{place}: layer {name.rstrip('.') or 'weight'} {tuple(weight.shape)} does not fit what comes before it or its bias"
            )
        layers.append(_linear(weight, bias.reshape(-1)))
    if layers[-1].out_features != 1:
        raise ConfigError(
            f"{place}: the last layer gives {layers[-1].out_features} numbers per image; a head gives one"
        )
    return layers


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight.detach().float()
    layer.bias.data = bias.detach().float()
    return layer.requires_grad_(False)


def _stacked(layers: list[nn.Linear], between: nn.Module) -> nn.Sequential:
    steps: list[nn.Module] = []
    for layer in layers:
        steps += [layer, between]
    return nn.Sequential(*steps[:-1])


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _some(state: State) -> str:
    names = list(state)
    return f"found {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"


def _fingerprint(kind: str, state: State) -> str:
    return weights.digest(dict(state), kind)
