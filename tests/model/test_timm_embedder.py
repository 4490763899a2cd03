"""`TimmImageEmbedder` against timm itself: same pixels, same numbers."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import timm.data
import torch
from PIL import Image

from streamer.errors import ConfigError
from streamer.model.checkpoint import load
from streamer.model.timm import TimmImageEmbedder, _classifier_keys, _Source, is_clip_tower

FAMILIES = [
    "vit_tiny_patch16_224",
    "convnext_atto",
    "efficientnet_lite0",
    "resnet18",
    "mobilenetv3_small_050",
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Landscape, portrait, square, smaller than the input, and as narrow as photographs get."""
    sources = [
        skimage.data.chelsea(),
        skimage.data.rocket(),
        skimage.data.coffee(),
        skimage.data.astronaut(),
    ]
    images = [Image.fromarray(s) for s in sources]
    return [
        *images,
        images[0].rotate(90, expand=True),
        images[1].resize((97, 61)),
        images[3].crop((200, 0, 237, 512)),
    ]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Model name → (timm's model with a classifier and random weights, its checkpoint)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, tuple[torch.nn.Module, Path]] = {}

    def get(name: str) -> tuple[torch.nn.Module, Path]:
        if name not in made:
            torch.manual_seed(len(made) + 17)
            net = timm.create_model(name).eval()
            for (
                key,
                value,
            ) in net.state_dict().items():  # statistics as a trained network has them, not 0 and 1
                if key.endswith("running_mean"):
                    value.normal_(0, 0.1)
                if key.endswith("running_var"):
                    value.uniform_(0.5, 2)
            path = folder / f"{name}.safetensors"
            safetensors.torch.save_file(net.state_dict(), path)
            made[name] = net, path
        return made[name]

    return get


def embedder_of(name: str, path: Path | None = None, **settings: Any) -> TimmImageEmbedder:
    embedder = TimmImageEmbedder(
        name, checkpoint=str(path) if path else None, pretrained=False, **settings
    )
    embedder.place(torch.device("cpu"))
    return embedder


def embed(embedder: TimmImageEmbedder, images: list[Image.Image]) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack([embedder.transform(i) for i in images]))
    return embedder.embed(pixels.to(embedder.device)).cpu()


def timm_input(net: torch.nn.Module, images: list[Image.Image]) -> torch.Tensor:
    """What timm's own evaluation transform, undivided, gives the model."""
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(net), is_training=False
    )
    return torch.stack([transform(i) for i in images])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_equal_timms_own_forward(
    name: str, device: str, photos: list[Image.Image], checkpoints: Any
) -> None:
    net, path = checkpoints(name)
    embedder = TimmImageEmbedder(name, checkpoint=str(path))
    embedder.place(torch.device(device))
    ours = embed(embedder, photos)
    headless = timm.create_model(name, num_classes=0).eval()
    headless.load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(headless(timm_input(net, photos)), dim=1)
    assert ours.dtype == torch.float32
    assert embedder.dim == ours.shape[1] == theirs.shape[1]
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours.norm(dim=1) - 1).abs().max() < 1e-5


GEOMETRIES: dict[str, dict[str, Any]] = {
    "squash": {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic"},
    "border": {"crop_mode": "border", "crop_pct": 0.9, "interpolation": "bicubic"},
    "bilinear": {"crop_mode": "center", "crop_pct": 0.875, "interpolation": "bilinear"},
    "tall": {
        "crop_mode": "center",
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "input_size": [3, 160, 128],
    },
}


@pytest.mark.parametrize("name", [*FAMILIES, *GEOMETRIES])
def test_the_model_is_fed_the_bits_of_timms_transform(
    name: str, photos: list[Image.Image], tmp_path: Path
) -> None:
    if name in GEOMETRIES:
        cfg = (
            timm.models.get_pretrained_cfg("test_resnet").to_dict(remove_source=True)
            | GEOMETRIES[name]
        )
        (tmp_path / "config.json").write_text(
            json.dumps({"architecture": "test_resnet", "pretrained_cfg": cfg})
        )
    embedder = embedder_of(f"local-dir:{tmp_path}" if name in GEOMETRIES else name)
    resolved = timm.data.resolve_model_data_config(embedder._net)
    expected = GEOMETRIES.get(name, {})
    assert {k: resolved[k] for k in expected} == expected
    fed: list[torch.Tensor] = []
    embedder._net.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    embed(embedder, photos)
    assert torch.equal(fed[0], timm_input(embedder._net, photos))


def test_openai_preprocessing_reproduces_its_golden_vector(data_set: Path, tmp_path: Path) -> None:
    """The real L/14 preprocessing on an L/14 of one layer, which is as good for this."""
    cfg = timm.models.get_pretrained_cfg("vit_large_patch14_clip_quickgelu_224.openai").to_dict(
        remove_source=True
    )
    config = {
        "architecture": "vit_large_patch14_clip_quickgelu_224",
        "model_args": {"depth": 1},
        "pretrained_cfg": cfg,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    embedder = embedder_of(f"local-dir:{tmp_path}")
    fed: list[torch.Tensor] = []
    embedder._net.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    golden = data_set / "clip_preprocess_golden"
    (photo,) = golden.glob("*.jpg")
    vectors = embed(embedder, [Image.open(photo).convert("RGB")])
    expected = np.load(golden / "expected_preprocessed_image.npy").reshape(3, 224, 224)
    assert np.abs(fed[0][0].numpy() - expected).max() == 0.0
    assert vectors.shape == (1, 768)
    assert embedder.features == "head"


def test_draft_size_leaves_twice_what_the_transform_needs(
    photos: list[Image.Image], tmp_path: Path
) -> None:
    embedder = embedder_of("resnet18")  # 224 / 0.95 = 235 px on the shorter side
    assert embedder.draft_size == (472, 472)
    path = tmp_path / "large.jpg"
    photos[3].resize((3000, 2000), Image.Resampling.LANCZOS).save(path, quality=95)
    whole = embedder.transform(Image.open(path).convert("RGB"))
    with Image.open(path) as image:
        image.draft("RGB", embedder.draft_size)
        assert image.size == (750, 500)
        drafted = embedder.transform(image.convert("RGB"))
    assert np.abs(whole.astype(int) - drafted).mean() < 1.0


def test_clip_towers_are_told_from_classifiers_in_all_of_timms_registry() -> None:
    """An independent statement of the rule: these are the widths of CLIP's projections, and no
    label set has them."""
    projections = {384, 512, 640, 768, 1024, 1152, 1280}
    names = timm.list_pretrained()
    assert len(names) > 1000
    wrong = []
    for name in names:
        cfg = timm.models.get_pretrained_cfg(name).to_dict()
        architecture, _, tag = name.partition(".")
        if is_clip_tower(architecture, tag, cfg) != (cfg["num_classes"] in projections):
            wrong.append((name, cfg["num_classes"]))
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "features", "dim", "family"),
    [
        ("vit_base_patch32_clip_quickgelu_224.openai", "head", 512, "openai-clip-vit-b-32"),
        (
            "vit_base_patch32_clip_quickgelu_224",
            "head",
            512,
            "openai-clip-vit-b-32",
        ),  # one's own weights: OpenAI's preprocessing is meant
        (
            "vit_base_patch32_clip_quickgelu_224.metaclip_400m",
            "head",
            512,
            "vit_base_patch32_clip_quickgelu_224.metaclip_400m",
        ),
        (
            "vit_base_patch32_clip_224.openai",
            "head",
            512,
            "vit_base_patch32_clip_224.openai",
        ),  # the wrong GELU
        (
            "vit_base_patch32_clip_224.laion2b_ft_in1k",
            "pool",
            768,
            "vit_base_patch32_clip_224.laion2b_ft_in1k",
        ),
        ("resnet18", "pool", 512, "resnet18"),
    ],
)
def test_auto_features_and_family(name: str, features: str, dim: int, family: str) -> None:
    embedder = embedder_of(name)
    assert (embedder.features, embedder.dim, embedder.family) == (features, dim, family)


def test_features_can_be_chosen(checkpoints: Any, photos: list[Image.Image]) -> None:
    net, path = checkpoints("resnet18")
    logits = embed(embedder_of("resnet18", path, features="head", normalize=False), photos[:2])
    with torch.no_grad():
        torch.testing.assert_close(logits, net(timm_input(net, photos[:2])), rtol=1e-4, atol=1e-4)
    clip = embedder_of("vit_base_patch32_clip_quickgelu_224.openai", features="pool")
    assert (clip.dim, clip.family) == (
        768,
        "vit_base_patch32_clip_quickgelu_224.openai",
    )  # no head of CLIP fits these
    with pytest.raises(
        ConfigError,
        match=r"embedder\.features: vit_small_patch14_dinov2\.lvd142m has no head; use features: pool",
    ):
        embedder_of("vit_small_patch14_dinov2.lvd142m", features="head")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet18"])
def test_half_precision_keeps_the_direction(
    name: str, precision: Any, photos: list[Image.Image], checkpoints: Any
) -> None:
    _, path = checkpoints(name)
    exact = embed(embedder_of(name, path), photos[:3])
    half_embedder = embedder_of(name, path, precision=precision)
    half = embed(half_embedder, photos[:3])
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    assert torch.nn.functional.cosine_similarity(half, exact).min() > 0.999
    norms = [m for m in half_embedder._net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(m.running_var is not None and m.running_var.dtype == torch.float32 for m in norms)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same(photos: list[Image.Image]) -> None:
    plain, compiled = embedder_of("test_resnet"), embedder_of("test_resnet", compile=True)
    for n in (3, 5):
        torch.testing.assert_close(
            embed(compiled, photos[:n]), embed(plain, photos[:n]), rtol=0, atol=1e-5
        )


def test_fingerprint_follows_weights_features_and_normalisation_and_nothing_else(
    checkpoints: Any, tmp_path: Path
) -> None:
    _, path = checkpoints("mobilenetv3_small_050")
    name = "mobilenetv3_small_050"
    first = embedder_of(name, path)
    assert first.fingerprint.startswith("sha256:")
    assert len(first.fingerprint) == 71
    same = [
        embedder_of(name, path, precision="bf16"),
        embedder_of(name, path, compile=True),
        embedder_of(f"{name}.lamb_in1k", path),
    ]
    assert {e.fingerprint for e in same} == {first.fingerprint}
    state = safetensors.torch.load_file(path)
    state["conv_stem.weight"][0, 0, 0, 0] += 1e-6
    changed = tmp_path / "changed.pth"
    torch.save(state, changed)
    others = [
        embedder_of(name, changed),
        embedder_of(name, path, normalize=False),
        embedder_of(name, path, features="head"),
        embedder_of(name),
    ]
    assert len({first.fingerprint, *(e.fingerprint for e in others)}) == 5


def test_random_weights_are_the_same_in_every_process_and_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        first = embedder_of("mobilenetv3_small_050")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert embedder_of("mobilenetv3_small_050").fingerprint == first.fingerprint
    assert "random weights" in caplog.text


def test_checkpoint_formats_and_training_containers(
    checkpoints: Any, photos: list[Image.Image], tmp_path: Path
) -> None:
    net, path = checkpoints("resnet18")
    expected = embed(embedder_of("resnet18", path), photos[:1])
    state = net.state_dict()
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    variants = {
        "plain.pth": state,
        "run.pt": {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        "headless.bin": headless,
    }
    for filename, content in variants.items():
        torch.save(content, tmp_path / filename)
        assert torch.equal(
            embed(embedder_of("resnet18", tmp_path / filename), photos[:1]), expected
        ), filename


CLASSIFIERS = [
    "levit_128s", "repvit_m1", "shvit_s1", "efficientvit_m0", "caformer_s18", "iformer_t",
    "deit_tiny_distilled_patch16_224", "regnetx_002", "ghostnet_050", "mobilevit_xxs",
    "cs3darknet_focus_s", "starnet_s050", "test_vit", "test_nfnet", "test_convnext",
    "test_efficientnet", "test_mambaout", "test_byobnet",
]  # fmt: skip
"""Of one layer and of several, of batch norms, of two heads, of every name"""


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_whole_checkpoint_is_loaded_without_its_classifier(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = timm.create_model(name, num_classes=7).state_dict()
    path = tmp_path / "whole.safetensors"
    safetensors.torch.save_file(whole, path)
    loaded = embedder_of(name, path, features="pool")._net.state_dict()
    with torch.device("meta"):
        assert loaded.keys() == timm.create_model(name, num_classes=0).state_dict().keys()
    assert loaded.keys() < whole.keys()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in loaded.items())


def test_what_is_beside_the_classifier_is_named(tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = timm.create_model("shvit_s1").state_dict()
    body, path = "patch_embed.0.c.weight", tmp_path / "wrong.safetensors"
    for state, problem in (
        ({k: v for k, v in whole.items() if k != body}, f"1 missing ({body})"),
        ({**whole, "head.l.more": torch.zeros(1)}, "1 unexpected (head.l.more)"),
        ({**whole, "heads.l.weight": torch.zeros(1)}, "1 unexpected (heads.l.weight)"),
    ):
        safetensors.torch.save_file(state, path)
        with pytest.raises(ConfigError, match=re.escape(problem)):
            embedder_of("shvit_s1", path, features="pool")
        with pytest.raises(ConfigError, match=re.escape(problem)):
            embedder_of("shvit_s1", path, features="head")


SMALLEST = [
    "beit_base_patch16_224", "halonet_h1", "test_byobnet", "cait_xxs24_224", "coat_tiny",
    "convit_tiny", "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240",
    "csatv2", "cs3darknet_focus_s", "cspnext_tiny", "davit_tiny", "deepseek_vit_412m",
    "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small",
    "efficientformer_l1", "efficientformerv2_s0", "test_efficientnet", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0",
    "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "gemma4_vit_167m", "ghostnet_050",
    "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small",
    "iformer_t", "inception_next_atto", "lcnetv2_small", "levit_128s", "lowformer_b0",
    "test_mambaout", "test_coatnet", "poolformerv2_s12", "gmlp_ti16_224", "mobilenetv3_small_050",
    "mobilenetv5_base", "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_parfac_gap",
    "jx_nest_tiny", "nextvit_small", "test_nfnet", "pit_ti_224", "pvt_v2_b0", "qwen3_vit_88m",
    "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m1", "res2next50", "resnest14d",
    "test_resnet", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s",
    "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window16_256", "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224",
    "tresnet_m", "twins_svt_small", "vgg11", "visformer_tiny", "test_vit", "vit_tiny_r_s16_p8_224",
    "test_vit_relpos", "samvit_base_patch16_224", "vitamin_small_224", "volo_d1_224",
    "ese_vovnet19b_slim_dw", "legacy_xception", "xception41p", "xcit_nano_12_p8_224",
]  # fmt: skip
"""One model of each family"""


def test_the_classifier_is_told_from_the_rest_in_every_family_of_timm() -> None:
    """On the meta device: keys and shapes, no numbers. A family that the list does not know is
    asked for its first model."""
    families = {module: timm.list_models(module=module) for module in timm.list_modules()}
    asked = 0
    for names in families.values():
        name = next((n for n in SMALLEST if n in names), next(iter(names), ""))
        cfg = timm.models.get_pretrained_cfg(name) if name else None
        if cfg is None:
            continue
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=0)
            whole = timm.create_model(name, num_classes=cfg.num_classes or 7).state_dict()
        pooled = net.state_dict()
        classifier = _classifier_keys(_Source(name, "", cfg.to_dict()), net)
        assert classifier == whole.keys() - pooled.keys(), name
        load(net, whole, lambda keys=classifier: keys, name)
        with pytest.raises(ConfigError, match=r"1 unexpected \(extra\)"):
            load(net, {**whole, "extra": torch.zeros(1)}, lambda keys=classifier: keys, name)
        asked += 1
    assert asked > 60


def test_a_model_that_computes_while_it_is_made_is_made_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The meta device has no numbers to compute with."""

    class Computing(torch.nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(3) * torch.linspace(0, 2, 3)[1].item())
            self.last = torch.nn.Linear(3, num_classes) if num_classes else torch.nn.Identity()

    def entry(pretrained: bool, num_classes: int, **unused: Any) -> Computing:
        return Computing(num_classes)

    with pytest.raises(RuntimeError), torch.device("meta"):
        Computing(0)
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "computing", entry)
    before = torch.random.get_rng_state()
    keys = _classifier_keys(_Source("computing", "", {"num_classes": 4}), Computing(0))
    assert keys == {"last.weight", "last.bias"}
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_open_clip_file_is_converted(tmp_path: Path, photos: list[Image.Image]) -> None:
    """OpenAI's own layout, text tower and all, as hub repositories keep it."""
    embedder = embedder_of("vit_base_patch32_clip_quickgelu_224.openai")
    state = {f"visual.{k}": v for k, v in openai_layout(embedder._net.state_dict()).items()}
    state |= {
        "positional_embedding": torch.zeros(77, 512),
        "text_projection": torch.zeros(512, 512),
        "logit_scale": torch.zeros(()),
    }
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(state, path)
    converted = embedder_of("vit_base_patch32_clip_quickgelu_224.openai", path)
    assert converted.fingerprint == embedder.fingerprint
    state["visual.positional_embedding"] = torch.zeros(
        1 + 8 * 8, 768
    )  # made for 256 px: another model
    torch.save(state, path)
    with pytest.raises(ConfigError, match="does not fit the model"):
        embedder_of("vit_base_patch32_clip_quickgelu_224.openai", path)


def openai_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {
        "class_embedding": state["cls_token"].reshape(-1),
        "positional_embedding": state["pos_embed"][0],
        "proj": state["head.weight"].T.contiguous(),
        "conv1.weight": state["patch_embed.proj.weight"],
    }
    parts = {"norm_pre.": "ln_pre.", "norm.": "ln_post.", "blocks.": "transformer.resblocks."}
    inner = {
        ".norm1.": ".ln_1.",
        ".norm2.": ".ln_2.",
        ".mlp.fc1.": ".mlp.c_fc.",
        ".mlp.fc2.": ".mlp.c_proj.",
        ".attn.proj.": ".attn.out_proj.",
    }
    inner |= {".attn.qkv.weight": ".attn.in_proj_weight", ".attn.qkv.bias": ".attn.in_proj_bias"}
    for key, value in state.items():
        start = next((p for p in parts if key.startswith(p)), None)
        if start is not None:
            new = parts[start] + key.removeprefix(start)
            for old, other in inner.items():
                new = new.replace(old, other)
            renamed[new] = value
    return renamed


def test_wrong_keys_are_named(checkpoints: Any, tmp_path: Path) -> None:
    _, path = checkpoints("resnet18")
    state = safetensors.torch.load_file(path)
    del state["layer1.0.conv1.weight"]
    state["layer9.extra"] = torch.zeros(3)
    state["bn1.weight"] = torch.zeros(7)
    wrong = tmp_path / "wrong.safetensors"
    safetensors.torch.save_file(state, wrong)
    expected = (
        r"embedder\.checkpoint: .*wrong\.safetensors: .*1 missing \(layer1\.0\.conv1\.weight\); 1 unexpected \(layer9\.extra\); "
        r"1 of another shape \(bn1\.weight\)"
    )
    with pytest.raises(ConfigError, match=expected):
        embedder_of("resnet18", wrong)
    with pytest.raises(
        ConfigError, match=r"missing \(.* and \d+ more\).*Use the checkpoint's own model name"
    ):
        embedder_of("mobilenetv3_small_050", path)


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_a_checkpoint_with_code_in_it_is_refused_unrun(checkpoints: Any, tmp_path: Path) -> None:
    _, path = checkpoints("resnet18")
    trace = tmp_path / "it-ran"
    torch.save({**safetensors.torch.load_file(path), "x": Hostile(trace)}, tmp_path / "hostile.pth")
    with pytest.raises(
        ConfigError,
        match=r"embedder\.checkpoint: .*hostile\.pth: refused, because loading it could run code",
    ):
        embedder_of("resnet18", tmp_path / "hostile.pth")
    assert not trace.exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)  # the trap is real
    assert trace.is_dir()


def test_unknown_models_and_tags_get_a_suggestion() -> None:
    with pytest.raises(
        ConfigError,
        match=r"embedder\.model: timm has no model 'resnet19'; did you mean 'resnet\w+'\?",
    ):
        embedder_of("resnet19")
    with pytest.raises(
        ConfigError, match=r"'resnet18' has no weights named 'nope'; known: .*a1_in1k"
    ):
        embedder_of("resnet18.nope")
    with pytest.raises(
        ConfigError,
        match=r"'resnetv2_50x1_bitm' is a deprecated timm name; did you mean 'resnetv2_50",
    ):
        embedder_of("resnetv2_50x1_bitm")
    with pytest.raises(ConfigError, match="/nowhere: holds no config"):
        embedder_of("local-dir:/nowhere")


def test_a_model_without_pooling_is_refused(tmp_path: Path) -> None:
    cfg = timm.models.get_pretrained_cfg("test_resnet").to_dict(remove_source=True)
    config = {
        "architecture": "test_resnet",
        "model_args": {"global_pool": ""},
        "pretrained_cfg": cfg,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"gives a \(1, \d+, \d+, \d+\) map per image, no vector"):
        embedder_of(f"local-dir:{tmp_path}")
