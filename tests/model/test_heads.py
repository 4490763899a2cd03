"""The shipped heads against LAION's own numbers and plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from streamer.errors import ConfigError
from streamer.model import laion
from streamer.model.heads import AestheticClassifier, LinearHead, MlpHead, NsfwClassifier

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
V2 = "sac+logos+ava1-l14-linearMSE.pth"
NSFW_L14, NSFW_B32 = (
    "clip_ViT-L-14_openai_binary_nsfw_head.pth",
    "clip_ViT-B-32_openai_binary_nsfw_head.pth",
)


@pytest.fixture
def heads(data_set: Path) -> Path:
    return data_set / "heads"


@pytest.fixture
def golden(heads: Path) -> dict[str, np.ndarray]:
    with np.load(heads / "golden.npz") as file:
        return dict(file)


def scores(head: Any, x: np.ndarray, device: str = "cpu") -> np.ndarray:
    head.place(torch.device(device))
    before = torch.from_numpy(x.astype(np.float32)).to(device)
    given = before.clone()
    result = head.score(given)
    assert torch.equal(given, before), "a head must not change its input: the next one gets it too"
    assert result.shape == (len(x),)
    assert result.dtype == torch.float32
    return result.cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("file", "x", "expected", "low", "high", "family"),
    [
        (V2, "proto_l_14", "proto_l_14_sac", 1.655, 5.747, laion.L14),
        ("sa_0_4_vit_l_14_linear.pth", "proto_l_14", "proto_l_14_sa04", -2.458, 11.30, laion.L14),
        ("sa_0_4_vit_b_32_linear.pth", "proto_b_32", "proto_b_32_sa04", -1.470, None, laion.B32),
    ],
)
def test_laions_ten_rating_prototypes(
    file: str,
    x: str,
    expected: str,
    low: float,
    high: float | None,
    family: str,
    device: str,
    heads: Path,
    golden: Any,
) -> None:
    head = AestheticClassifier(str(heads / file))
    found = scores(head, golden[x], device)
    assert np.abs(found - golden[expected]).max() < 1e-5
    assert (np.diff(found) > 0).all(), "ten prototypes of rising rating"
    assert found[0] == pytest.approx(low, abs=2e-3)
    assert high is None or found[-1] == pytest.approx(high, abs=1e-2)
    assert (head.dim, head.families, head.requires_normalized) == (
        golden[x].shape[1],
        frozenset({family}),
        True,
    )


def test_v2_collapsed_equals_its_five_layers(heads: Path) -> None:
    state = torch.load(heads / V2, map_location="cpu", weights_only=True)
    x = nn.functional.normalize(
        torch.randn(200, 768, generator=torch.Generator().manual_seed(1)), dim=1
    )
    expected = x
    for i in (0, 2, 4, 6, 7):
        expected = nn.functional.linear(
            expected, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"]
        )
    assert (
        np.abs(
            scores(AestheticClassifier(str(heads / V2)), x.numpy()) - expected[:, 0].numpy()
        ).max()
        < 1e-5
    )


GOLDEN_NSFW = [
    (NSFW_L14, "port", "l14_x", "l14_naive"),
    (NSFW_L14, "exact", "l14_x", "l14_tf"),
    (NSFW_L14, "exact", "l14_x32", "l14_tf32"),
    (NSFW_B32, "port", "b32_x", "b32_naive"),
    (NSFW_B32, "exact", "b32_x", "b32_tf"),
    (NSFW_B32, "exact", "b32_x32", "b32_tf32"),
    (NSFW_B32, "port", "real_b32_x", "real_b32_naive"),
    (NSFW_B32, "exact", "real_b32_x", "real_b32_exact"),
    ("laion_clip_nsfw_vit_l_14.safetensors", "port", "l14_x", "l14_naive"),
    ("laion_clip_nsfw_vit_l_14.safetensors", "exact", "l14_x", "l14_tf"),
    ("laion_clip_nsfw_vit_b_32.safetensors", "exact", "b32_x", "b32_tf"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("file", "variant", "x", "expected"), GOLDEN_NSFW)
def test_nsfw_golden_vectors(
    file: str, variant: Any, x: str, expected: str, device: str, heads: Path, golden: Any
) -> None:
    head = NsfwClassifier(str(heads / file), variant=variant)
    assert np.abs(scores(head, golden[x], device) - golden[expected]).max() < 1e-5
    assert head.families == {laion.L14 if head.dim == 768 else laion.B32}


def test_the_variants_differ_where_the_original_has_categories(heads: Path, golden: Any) -> None:
    port, exact = (NsfwClassifier(str(heads / NSFW_L14), variant=v) for v in ("port", "exact"))
    assert np.abs(scores(port, golden["l14_x"]) - scores(exact, golden["l14_x"])).max() > 0.1
    assert port.fingerprint != exact.fingerprint


def test_the_packages_categories_are_the_originals(heads: Path) -> None:
    """The table beside the code says what LAION's SavedModel says (the safetensors files were taken
    from it)."""
    for weights_file, original in (
        (NSFW_L14, "laion_clip_nsfw_vit_l_14"),
        (NSFW_B32, "laion_clip_nsfw_vit_b_32"),
    ):
        state = safetensors.torch.load_file(heads / f"{original}.safetensors")
        shipped = {
            v.dim: v
            for v in NsfwClassifier(str(heads / weights_file), variant="exact")._vocabularies
        }
        assert sorted(shipped) == state["categorical.dims"].tolist()
        for dim, vocabulary in shipped.items():
            assert torch.equal(vocabulary.keys, state[f"categorical.{dim}.keys_1e6"].long())
            assert torch.equal(vocabulary.categories, state[f"categorical.{dim}.index"].float())


def test_categories_are_looked_up_as_six_printed_decimals(heads: Path) -> None:
    """Against Python's own ``%f``, on values around and between the vocabulary's."""
    head = NsfwClassifier(str(heads / NSFW_L14), variant="exact")
    vocabulary = head._vocabularies[0]
    words = {
        f"{int(k) / 1e6:.6f}": float(c)
        for k, c in zip(vocabulary.keys, vocabulary.categories, strict=True)
    }
    near = vocabulary.keys[::50].double().numpy()[:, None] + np.linspace(-1.2, 1.2, 13)
    x = torch.zeros(near.size, 768)
    x[:, vocabulary.dim] = torch.from_numpy((near / 1e6).astype(np.float32).ravel())
    expected = [words.get(f"{float(v):f}", 0.0) for v in x[:, vocabulary.dim]]
    vocabulary(x)
    assert x[:, vocabulary.dim].tolist() == expected
    assert 0.0 in expected
    assert len(set(expected)) > 100


def test_exact_is_refused_for_weights_without_known_categories(heads: Path, tmp_path: Path) -> None:
    state = torch.load(heads / NSFW_L14, map_location="cpu", weights_only=True)
    state["linear_4.bias"] += 0.1
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(
        ConfigError,
        match=r"heads\.1\.weights: .*mine\.pth: variant: exact needs the categories .* use variant: port",
    ):
        NsfwClassifier(str(tmp_path / "mine.pth"), variant="exact", where="heads.1")
    assert NsfwClassifier(str(tmp_path / "mine.pth")).families == {laion.L14}


def test_defaults_are_pinned_to_the_files_that_are_known(heads: Path, large: bool) -> None:
    from streamer.files import file_sha256

    known = [p for p in (*laion.AESTHETIC, *laion.NSFW) if large or not p.url.endswith(V2)]
    assert len(known) == 5 + large
    for published in known:
        assert file_sha256(heads / published.url.rsplit("/", 1)[1]) == published.sha256, (
            published.url
        )


def test_the_default_follows_the_family(monkeypatch: pytest.MonkeyPatch, heads: Path) -> None:
    asked: list[str] = []

    def resolve(reference: str, where: str) -> Path:
        asked.append(reference)
        return heads / reference.partition("#")[0].rsplit("/", 1)[1]

    monkeypatch.setattr("streamer.model.weights.resolve", resolve)
    assert AestheticClassifier(family=laion.L14).dim == 768
    assert AestheticClassifier(family=laion.B32).families == {laion.B32}
    assert AestheticClassifier(family=laion.B16).families == {laion.B16}
    assert NsfwClassifier(family=laion.B32).dim == 512
    assert [a.partition("#")[0].rsplit("/", 1)[1] for a in asked] == [
        V2,
        "sa_0_4_vit_b_32_linear.pth",
        "sa_0_4_vit_b_16_linear.pth",
        NSFW_B32,
    ]
    assert all("#sha256=" in a for a in asked)
    with pytest.raises(
        ConfigError,
        match=r"heads\.0: LAION has no such head for resnet18; use embedder\.model: vit_large_patch14_clip_quickgelu_224\.openai or",
    ):
        AestheticClassifier(family="resnet18", where="heads.0")
    with pytest.raises(ConfigError, match="LAION has no such head for openai-clip-vit-b-16"):
        NsfwClassifier(family=laion.B16)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("output", ["identity", "sigmoid"])
def test_linear_head(suffix: str, output: Any, tmp_path: Path) -> None:
    layer = nn.Linear(32, 1)
    save(
        {"probe.weight": layer.weight.data[0], "probe.bias": layer.bias.data},
        tmp_path / f"w{suffix}",
    )
    head = LinearHead(
        str(tmp_path / f"w{suffix}"), name="mine", output=output, requires_normalized=False
    )
    x = np.random.default_rng(0).normal(size=(7, 32))
    with torch.no_grad():
        expected = layer(torch.from_numpy(x.astype(np.float32)))[:, 0]
    expected = expected.sigmoid() if output == "sigmoid" else expected
    assert np.abs(scores(head, x) - expected.numpy()).max() < 1e-6
    assert (head.name, head.dim, head.requires_normalized) == ("mine", 32, False)
    assert head.range == ((0.0, 1.0) if output == "sigmoid" else None)


@pytest.mark.parametrize("activation", ["relu", "gelu", "none"])
def test_mlp_head_in_natural_order(activation: Any, tmp_path: Path) -> None:
    widths = [24, 24, 24, 1]
    layers = [nn.Linear(a, b) for a, b in zip([24, *widths], widths, strict=False)]
    names = ["net.2", "net.4", "net.10", "net.12"]  # as text, 10 and 12 come before 2
    save(
        {
            f"{n}.{k}": v.data
            for n, layer in zip(names, layers, strict=True)
            for k, v in layer.named_parameters()
        },
        tmp_path / "w.pth",
    )
    head = MlpHead(str(tmp_path / "w.pth"), name="mine", activation=activation, output="sigmoid")
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(3))
    between = {"relu": nn.ReLU(), "gelu": nn.GELU(), "none": nn.Identity()}[activation]
    y = x
    with torch.no_grad():
        for i, layer in enumerate(layers):
            y = layer(y) if i == len(layers) - 1 else between(layer(y))
    assert np.abs(scores(head, x.numpy()) - y.sigmoid()[:, 0].numpy()).max() < 1e-6


def save(state: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize(
    ("make", "state", "message"),
    [
        (LinearHead, {"a.weight": (1, 4), "b.weight": (1, 1)}, "holds 2 layers; use type: mlp"),
        (LinearHead, {"a.weight": (3, 4)}, "the last layer gives 3 numbers per image"),
        (MlpHead, {"a.weight": (8, 4), "b.weight": (1, 7)}, r"layer b \(1, 7\) does not fit"),
        (MlpHead, {"a.weight": (1, 4), "a.bias": (2,)}, r"layer a \(1, 4\) does not fit"),
        (MlpHead, {"a.weight": (1, 4), "bn.running_mean": (4,)}, r"is no chain of linear layers \(found a\.weight, bn\.running_mean\)"),
        (MlpHead, {"conv.weight": (1, 4, 3, 3)}, "is no chain of linear layers"),
        (AestheticClassifier, {"layers.0.weight": (1, 768), "layers.0.bias": (1,)}, "is neither LAION's aesthetic V1 nor V2 .* use type: linear or mlp"),
        (NsfwClassifier, {"weight": (1, 768), "bias": (1,)}, r"is not LAION's NSFW detector.*\(found weight, bias\)"),
        (NsfwClassifier, {"norm.mean": (4,), "norm.variance": (4,), "linear_1.weight": (1, 4), "odd": (1,)}, r"linear_N \(odd\)"),
    ],
)  # fmt: skip
def test_files_that_are_something_else_are_named(
    make: Any, state: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    torch.save({k: torch.zeros(shape) for k, shape in state.items()}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=rf"heads\.4\.weights: .*w\.pth: .*{message}"):
        make(str(tmp_path / "w.pth"), name="mine", where="heads.4")
