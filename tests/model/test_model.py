"""The façade: batches in order whatever the device does, memory running out, and start-up errors
that say what would fit."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import torch
from PIL import Image

from streamer import Head, ImageEmbedder
from streamer.config import Config, parse
from streamer.errors import ConfigError, DependencyError, PluginError
from streamer.model import device as devices
from streamer.model import laion
from streamer.model.model import Embedded, Model, is_length, load_model, unit_vectors

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Mean(ImageEmbedder):
    """(mean of each channel, 1), normalised; runs out of memory above ``fits`` images, as an
    allocator would."""

    dim, normalized, family, fingerprint = 4, True, "mean", "mean-1"

    def __init__(self, fits: int = 10**9, error: str = "torch") -> None:
        self.fits = fits
        self.error = error
        self.sizes: list[int] = []

    def transform(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((8, 6)))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.uint8
        assert pixels.device == self.device
        if len(pixels) > self.fits:
            if self.error == "torch":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            raise RuntimeError(self.error)
        self.sizes.append(len(pixels))
        x = pixels.float().mean(dim=(1, 2)) / 255
        return torch.nn.functional.normalize(
            torch.cat([x, torch.ones_like(x[:, :1])], dim=1), dim=1
        )


class Weighted(Head):
    """A dot product; its weights must follow to the device by themselves."""

    dim = 4

    def __init__(self, name: str, weights: Sequence[float]) -> None:
        self.name = name
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings @ self.weights


def images(n: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, 6, 8, 3), dtype=np.uint8))


def expected(pixels: list[np.ndarray]) -> np.ndarray:
    x = np.concatenate(
        [np.stack(pixels).astype(np.float64).mean(axis=(1, 2)) / 255, np.ones((len(pixels), 1))],
        axis=1,
    )
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def model_of(embedder: ImageEmbedder, device: str = "cpu") -> Model:
    return Model(
        embedder,
        [Weighted("first", (1, 0, 0, 0)), Weighted("sum", (1, 1, 1, 1))],
        torch.device(device),
    )


def check(embedded: Embedded, pixels: list[np.ndarray]) -> None:
    vectors = expected(pixels)
    assert embedded.embeddings.dtype == np.float16
    assert embedded.embeddings.flags.c_contiguous
    assert np.abs(embedded.embeddings - vectors).max() < 2**-11
    assert np.abs(embedded.lengths - 1).max() < 1e-6
    assert embedded.embedded.all()
    if embedded.resident is not None:
        np.testing.assert_array_equal(
            embedded.resident.cpu().numpy(), embedded.embeddings.astype(np.float32)
        )
    assert list(embedded.scores) == ["first", "sum"]
    assert np.abs(embedded.scores["first"] - vectors[:, 0]).max() < 1e-6
    assert np.abs(embedded.scores["sum"] - vectors.sum(axis=1)).max() < 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_batches_come_back_whole_and_in_order(device: str) -> None:
    """Several in flight, of changing size, read late and twice: no staging buffer may be reused too
    early."""
    model = model_of(Mean(), device)
    batches = [images(n, seed=n) for n in (3, 64, 1, 200, 7, 64, 128)]
    tickets = [model.submit(b) for b in batches]
    for batch, ticket in reversed(list(zip(batches, tickets, strict=True))):
        check(ticket.result(), batch)
        check(ticket.result(), batch)
    empty = model.submit([]).result()
    assert empty.embeddings.shape == (0, 4)
    assert [s.shape for s in empty.scores.values()] == [(0,), (0,)]
    assert (model.dim, model.score_names) == (4, ("first", "sum"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "error",
    [
        "torch",
        "CUDA error: out of memory",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    error: str, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Mean(fits=30, error=error)
    model = model_of(embedder, device)
    before = model.submit(images(20))
    batch = images(100)
    with caplog.at_level(logging.WARNING):
        ticket = model.submit(batch)
    assert embedder.sizes == [20, 25, 25, 25, 25]
    assert model.batch_limit == 25
    assert "out of memory with 50 images; going on with 25 at a time" in caplog.text
    check(ticket.result(), batch)
    check(before.result(), images(20))
    embedder.sizes.clear()
    check(model.submit(batch).result(), batch)
    assert embedder.sizes == [25, 25, 25, 25], "what fits is remembered"


def test_unit_vectors() -> None:
    rows = torch.tensor(
        [[3, 4], [0, 0], [torch.nan, 1], [-torch.inf, 0], [1e-3, 0], [0, -250.0], [3e38, 3e38]]
    )
    vectors, lengths = unit_vectors(rows)
    assert vectors.dtype == torch.float16
    assert is_length(lengths).tolist() == [
        True,
        False,
        False,
        False,
        True,
        True,
        False,
    ]  # the last one's length is above float32
    np.testing.assert_array_equal(
        vectors, np.array([[0.6, 0.8], [0, 0], [0, 0], [0, 0], [1, 0], [0, -1], [0, 0]], np.float16)
    )


@pytest.mark.parametrize("device", DEVICES)
def test_unit_vectors_are_of_unit_length_in_fp16(device: str) -> None:
    rows = (
        torch.randn((500, 768), generator=torch.Generator().manual_seed(0))
        * torch.logspace(-6, 6, 500)[:, None]
    )
    vectors, lengths = unit_vectors(rows.to(device))
    assert bool(is_length(lengths).all())
    assert np.abs(np.linalg.norm(vectors.cpu().double().numpy(), axis=1) - 1).max() < 2**-10


@pytest.mark.gpu
def test_what_the_gpu_keeps_is_what_it_sent() -> None:
    """`check` compares; a batch that was halved is on the host only."""
    model = model_of(Mean(fits=30), "cuda")
    assert (kept := model.submit(images(20)).result().resident) is not None
    assert kept.device.type == "cuda"
    assert model.submit(images(100)).result().resident is None


def test_out_of_memory_with_one_image_ends_with_a_message() -> None:
    model = model_of(Mean(fits=0))
    with pytest.raises(
        DependencyError,
        match=r"device: out of memory with a single image; use a smaller model, precision: bf16",
    ):
        model.submit(images(5))


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_that_raises_is_computed_row_by_row(
    device: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And batches that are halved meanwhile still count their rows from the batch's beginning."""

    class Picky(Mean):
        def embed(self, pixels: torch.Tensor) -> torch.Tensor:
            if bool((pixels == 255).flatten(1).all(dim=1).any()):
                raise ZeroDivisionError("white")
            return super().embed(pixels)

    class PickyHead(Weighted):
        def score(self, embeddings: torch.Tensor) -> torch.Tensor:
            assert bool(embeddings.isfinite().all())
            if bool((embeddings[:, 3] > 0.99).any()):
                raise KeyError("black")
            return super().score(embeddings)

    model = Model(
        Picky(fits=20),
        [PickyHead("first", (1, 0, 0, 0)), Weighted("sum", (1, 1, 1, 1))],
        torch.device(device),
    )
    batch = images(32)
    batch[5][:], batch[17][:], batch[30][:] = 255, 0, 255
    with caplog.at_level(logging.WARNING):
        result = model.submit(batch).result()
    assert {i: (e.reason, e.detail) for i, e in result.failures.items()} == {
        5: ("embedder_failed", "ZeroDivisionError: white"),
        17: ("head_failed", "KeyError: 'black'"),
        30: ("embedder_failed", "ZeroDivisionError: white"),
    }
    assert (
        "embedder: Picky.embed() cannot take one image, whose record is invalid: ZeroDivisionError: white"
        in caplog.text
    )
    good = [i for i in range(32) if i not in (5, 17, 30)]
    scores = {n: s[good] for n, s in result.scores.items()}
    check(Embedded(result.embeddings[good], result.lengths[good], scores), [batch[i] for i in good])
    assert np.flatnonzero(~result.embedded).tolist() == [5, 30]
    assert not result.embeddings[[5, 30]].any()
    assert np.isnan(result.scores["first"][[5, 17, 30]]).all()


def test_an_embedder_that_fails_for_a_black_image_too_is_broken() -> None:
    class Broken(Mean):
        def embed(self, pixels: torch.Tensor) -> torch.Tensor:
            raise ValueError(f"no good: {len(pixels)}")

    with pytest.raises(
        PluginError,
        match=r"embedder: Broken\.embed\(\) fails for every image, the first time with ValueError: no good: 3",
    ) as caught:
        model_of(Broken()).submit(images(3))
    assert caught.value.exit_code == 1
    with pytest.raises(PluginError):
        model_of(Broken()).submit(images(1))


def test_bad_images_alone_in_a_batch_are_no_broken_embedder() -> None:
    class Picky(Mean):
        def embed(self, pixels: torch.Tensor) -> torch.Tensor:
            if bool((pixels > 0).any()):
                raise ValueError("not black")
            return super().embed(pixels)

    failures = model_of(Picky()).submit(images(3)).result().failures
    assert [(row, e.reason, e.detail) for row, e in failures.items()] == [
        (i, "embedder_failed", "ValueError: not black") for i in range(3)
    ]


def test_a_wrong_shape_or_type_is_a_broken_plugin() -> None:
    class Wide(Mean):
        def embed(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().embed(pixels).double()

    with pytest.raises(
        PluginError,
        match=r"embedder: Wide\.embed\(\) returned \(3, 4\) of torch.float64; it must return",
    ):
        model_of(Wide()).submit(images(3))


@pytest.mark.parametrize(
    "error",
    [
        "CUDA error: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_a_broken_device_is_no_images_fault(error: str) -> None:
    embedder = Mean(fits=0, error=error)
    with pytest.raises(RuntimeError, match=error):
        model_of(embedder).submit(images(1))


def test_other_runtime_errors_are_not_taken_for_want_of_memory() -> None:
    model = model_of(Mean(fits=0, error="expected scalar type Float"))
    with pytest.raises(PluginError, match="expected scalar type"):
        model.submit(images(2))
    assert model.batch_limit == 0


@pytest.mark.gpu
def test_real_want_of_gpu_memory_is_survived() -> None:
    """A forward that really allocates: 64 MB an image on a device with 1 GB for us."""

    class Hungry(Mean):
        def embed(self, pixels: torch.Tensor) -> torch.Tensor:
            torch.empty(len(pixels), 64_000_000, dtype=torch.uint8, device=pixels.device)
            return super().embed(pixels)

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e9 / total)
    try:
        model = model_of(Hungry(), "cuda")
        batch = images(50)
        check(model.submit(batch).result(), batch)
        assert 1 <= model.batch_limit < 16
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
def test_submit_returns_before_the_gpu_is_done() -> None:
    """The next batch is staged while this one computes."""

    class Slow(Mean):
        def embed(self, pixels: torch.Tensor) -> torch.Tensor:
            torch.cuda._sleep(2_000_000_000)  # about a second of GPU cycles
            return super().embed(pixels)

    model = model_of(Slow(), "cuda")
    model.submit(images(4)).result()
    started = time.monotonic()
    tickets = [model.submit(images(64, seed)) for seed in range(2)]
    queued = time.monotonic() - started
    for seed, ticket in enumerate(tickets):
        check(ticket.result(), images(64, seed))
    done = time.monotonic() - started
    assert queued < 0.2 * done


def test_a_device_has_one_name() -> None:
    """Whoever compares a tensor's device with his own compares equal ones."""
    names = {"cpu": "cpu", "cuda": "cuda:0", "cuda:0": "cuda:0", "cuda:3": "cuda:3", "meta": "meta"}
    assert {name: str(devices.indexed(torch.device(name))) for name in names} == names
    assert model_of(Mean()).device == torch.zeros(1).device == torch.device("cpu")


@pytest.mark.gpu
def test_a_bare_cuda_is_the_device_that_tensors_are_on() -> None:
    embedder = Mean()
    model = model_of(embedder, "cuda")
    assert model.device == embedder.device == torch.zeros(1, device="cuda").device
    assert [head.weights.device for head in model.heads] == [model.device] * 2


def test_devices_are_chosen_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(devices.choose(n)) for n in ("auto", "cpu", "cuda", "cuda:1")] == [
        "cuda:0",
        "cpu",
        "cuda:0",
        "cuda:1",
    ]
    with pytest.raises(
        ConfigError,
        match=r"device: cuda:2: no such GPU; there are 2 here \(cuda:0 … cuda:1\)\. Use auto or cpu",
    ):
        devices.choose("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(devices.choose("auto")) == "cpu"
    with pytest.raises(ConfigError, match="device: cuda: no such GPU; PyTorch sees none here"):
        devices.choose("cuda")


# Start-up


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads with the real ones' keys and shapes, and random numbers."""
    folder = tmp_path_factory.mktemp("heads")
    torch.manual_seed(0)
    for dim in (512, 768, 1024):
        torch.save(
            {"weight": torch.randn(1, dim), "bias": torch.randn(1)}, folder / f"v1-{dim}.pth"
        )
    v2 = {}
    for i, (a, b) in zip(
        (0, 2, 4, 6, 7), ((768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)), strict=True
    ):
        v2 |= {
            f"layers.{i}.weight": torch.randn(b, a) * a**-0.5,
            f"layers.{i}.bias": torch.randn(b) * 0.1,
        }
    torch.save(v2, folder / "v2.pth")
    nsfw = {"norm.mean": torch.randn(768) * 0.01, "norm.variance": torch.rand(768) * 1e-3 + 1e-3}
    for i, (a, b) in enumerate(((768, 64), (64, 512), (512, 256), (256, 1)), 1):
        nsfw |= {
            f"linear_{i}.weight": torch.randn(b, a) * a**-0.5,
            f"linear_{i}.bias": torch.randn(b) * 0.1,
        }
    safetensors.torch.save_file(nsfw, folder / "nsfw.safetensors")
    (folder / "room_plugins.py").write_text(PLUGINS)
    return folder


PLUGINS = """
import numpy as np
import torch
from streamer import Head, ImageEmbedder

class Ok(ImageEmbedder):
    dim, normalized, family, fingerprint = 3, True, "ok", "ok-1"
    def transform(self, image):
        return np.asarray(image.resize((4, 4)))
    def embed(self, pixels):
        return torch.nn.functional.normalize(pixels.float().mean(dim=(1, 2)), dim=1)

class Decoding(Ok):
    def decode(self, data):
        assert data[:2] == bytes([0xFF, 0xD8])
        return np.full((5, 7, 3), 9, dtype=np.uint8)

class BadDecoding(Ok):
    def decode(self, data):
        return np.zeros((5, 7))

class NoDim(Ok):
    dim, fingerprint = "three", None

class FloatPixels(Ok):
    def transform(self, image):
        return np.asarray(image.resize((4, 4)), dtype=np.float32)

class WrongWidth(Ok):
    dim = 5

class Unnormalised(Ok):
    def embed(self, pixels):
        return pixels.float().mean(dim=(1, 2))

class Crashing(Ok):
    def embed(self, pixels):
        raise ValueError("no good")

class Loud(Head):
    dim = 3
    def __init__(self, factor=1.0):
        self.factor = factor
    def score(self, embeddings):
        return embeddings.sum(1) * self.factor

class TwoColumns(Loud):
    def score(self, embeddings):
        return embeddings[:, :2]

class NoDimHead(Loud):
    dim = None
"""


def config_of(
    embedder: dict[str, Any], heads: Sequence[dict[str, Any]] = (), **more: Any
) -> Config:
    base = {
        "dataset": "d",
        "kafka": {"bootstrap_servers": "b", "topic": "t"},
        "output": {"path": "o"},
        "device": "cpu",
    }
    return parse({**base, "embedder": embedder, "heads": list(heads), **more})


RANDOM = {"pretrained": False}
B32 = {"model": "vit_base_patch32_clip_quickgelu_224.openai", **RANDOM}
RESNET = {"model": "test_resnet", **RANDOM}


@pytest.mark.parametrize(
    ("embedder", "head", "message"),
    [
        (
            B32,
            {"type": "aesthetic", "weights": "v2.pth"},
            r"heads\.0: aesthetic \(AestheticClassifier\) was trained on vectors of openai-clip-vit-l-14 \(768-d\); the embedder gives 512-d vectors "
            r"of openai-clip-vit-b-32; use embedder\.model: vit_large_patch14_clip_quickgelu_224\.openai with features: auto",
        ),
        (
            RESNET,
            {"type": "nsfw", "weights": "nsfw.safetensors"},
            r"heads\.0: nsfw .* of test_resnet; use embedder\.model: vit_large_patch14_clip_quickgelu_224\.openai",
        ),
        (
            {**B32, "features": "pool"},
            {"type": "aesthetic", "weights": "v1-512.pth"},
            r"gives 768-d vectors of vit_base_patch32_clip_quickgelu_224\.openai; use embedder\.model: .*vit_base_patch32_\S+openai with features: auto",
        ),
        (
            {"model": "vit_base_patch32_clip_224.openai", **RANDOM},
            {"type": "aesthetic", "weights": "v1-512.pth"},
            r"gives 512-d vectors of vit_base_patch32_clip_224\.openai; use .*vit_base_patch32_clip_quickgelu_224\.openai",
        ),
        (RESNET, {"type": "aesthetic"}, r"heads\.0: LAION has no such head for test_resnet; use embedder\.model: vit_large_patch14_clip_quickgelu"),
        (RESNET, {"type": "linear", "name": "mine", "weights": "v1-512.pth"}, r"heads\.0: mine \(LinearHead\) takes 512-d vectors; .* gives 96-d ones"),
        (
            {**B32, "normalize": False},
            {"type": "aesthetic", "weights": "v1-512.pth"},
            r"heads\.0: aesthetic .* was trained on vectors of length 1; set embedder\.normalize: true",
        ),
        (RESNET, {"type": "aesthetic", "weights": "gone.pth"}, r"heads\.0\.weights: gone\.pth: no such file"),
        (B32, {"type": "room_plugins:Loud", "name": "loud"}, r"heads\.0: loud \(Loud\) takes 3-d vectors; the embedder .* gives 512-d ones"),
        (B32, {"type": "room_plugins:NoDimHead", "name": "x"}, r"heads\.0: room_plugins:NoDimHead: NoDimHead must set dim \(int\)"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit_say_what_would(
    embedder: dict[str, Any],
    head: dict[str, Any],
    message: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(ConfigError, match=message):
        load_model(config_of(embedder, [head], dedup="off"))


def test_deduplication_needs_normalised_vectors() -> None:
    with pytest.raises(
        ConfigError, match=r"embedder\.normalize: .* set normalize: true, or dedup: off"
    ):
        load_model(config_of({**RESNET, "normalize": False}))
    load_model(config_of({**RESNET, "normalize": False}, dedup="off"))


def test_heads_that_fit(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    model = load_model(
        config_of(
            B32,
            [
                {"type": "aesthetic", "weights": "v1-512.pth"},
                {"type": "aesthetic", "name": "again", "weights": "v1-512.pth"},
            ],
        )
    )
    assert model.score_names == ("aesthetic", "again")
    assert model.embedder.family == laion.B32
    assert set(model.fingerprints) == {"aesthetic", "again"}
    assert model.fingerprints["aesthetic"].startswith("sha256:")


def test_plugins_are_built_checked_and_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    heads = [{"type": "room_plugins:Loud", "name": "loud", "args": {"factor": 2.0}}]
    model = load_model(config_of({"type": "room_plugins:Ok"}, heads))
    pixels = [np.full((4, 4, 3), 100, np.uint8)]
    result = model.submit(pixels).result()
    assert result.scores["loud"][0] == pytest.approx(2 * 3**0.5)
    assert load_model(config_of({"type": "room_plugins:Decoding"})).embedder.decode is not None


@pytest.mark.parametrize(
    ("embedder", "head", "message"),
    [
        (
            "NoDim",
            None,
            r"embedder: room_plugins:NoDim: NoDim must set dim \(int, not 'three'\), fingerprint \(str\)",
        ),
        (
            "FloatPixels",
            None,
            r"embedder: transform\(\) returned float32 \(4, 4, 3\); it must return a numpy array \(H, W, 3\) of uint8",
        ),
        ("BadDecoding", None, r"embedder: decode\(\) returned float64 \(5, 7\)"),
        (
            "WrongWidth",
            None,
            r"embedder: WrongWidth\.embed\(\) returned \(2, 3\) of torch\.float32; it must return a tensor \(2, 5\) of torch\.float32",
        ),
        ("Unnormalised", None, r"embedder: a first image's vector has length .*, which must be 1"),
        (
            "Crashing",
            None,
            r"Crashing\.embed\(\) fails for every image, the first time with ValueError: no good",
        ),
        ("Gone", None, r"embedder\.type: room_plugins:Gone: module 'room_plugins' has no 'Gone'"),
        (
            "Ok",
            "TwoColumns",
            r"heads: x: TwoColumns\.score\(\) returned \(2, 2\) of torch\.float32; it must return a tensor \(2,\)",
        ),
        ("Ok", "Ok", r"heads\.0\.type: room_plugins:Ok: is not a subclass of streamer\.Head"),
    ],
)
def test_wrong_plugins_are_found_at_start(
    embedder: str, head: str | None, message: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    heads = [{"type": f"room_plugins:{head}", "name": "x"}] if head else []
    with pytest.raises(ConfigError, match=message):
        load_model(config_of({"type": f"room_plugins:{embedder}"}, heads))


def test_weights_that_give_nan_are_found_at_start(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("test_resnet").state_dict()
    state["conv1.weight" if "conv1.weight" in state else next(iter(state))].fill_(float("nan"))
    safetensors.torch.save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(
        ConfigError,
        match=r"embedder: a first image's vector has length nan, which must be 1; check the weights and the precision",
    ):
        load_model(
            config_of({"model": "test_resnet", "checkpoint": str(tmp_path / "nan.safetensors")})
        )


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_photographs_through_clip_l14_with_both_heads_equal_plain_torch(
    device: str, files: Path
) -> None:
    """Random weights, the real architecture and the real heads' shapes; the reference below is
    written out in timm and torch alone."""
    import timm
    import timm.data

    heads = [
        {"type": "aesthetic", "weights": str(files / "v2.pth")},
        {"type": "nsfw", "weights": str(files / "nsfw.safetensors")},
    ]
    model = load_model(
        config_of({"model": laion.MODELS[laion.L14], **RANDOM}, heads, device=device)
    )
    photos = [Image.fromarray(a) for a in (skimage.data.chelsea(), skimage.data.rocket())]
    result = model.submit([model.embedder.transform(p) for p in photos]).result()

    with torch.device(
        "meta"
    ):  # a second set of 304 million random numbers would take seconds, to be overwritten at once
        net = timm.create_model("vit_large_patch14_clip_quickgelu_224.openai").eval()
    net.load_state_dict(
        {k: v.cpu() for k, v in model.embedder._net.state_dict().items()}, assign=True
    )
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(net), is_training=False
    )
    v2 = torch.load(files / "v2.pth", weights_only=True)
    nsfw = safetensors.torch.load_file(files / "nsfw.safetensors")
    with torch.no_grad():
        vectors = net(torch.stack([transform(p) for p in photos]))
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
        aesthetic = vectors
        for i in (0, 2, 4, 6, 7):
            aesthetic = torch.nn.functional.linear(
                aesthetic, v2[f"layers.{i}.weight"], v2[f"layers.{i}.bias"]
            )
        unsafe = (vectors - nsfw["norm.mean"]) / nsfw["norm.variance"].sqrt()
        for i in (1, 2, 3, 4):
            unsafe = torch.nn.functional.linear(
                unsafe, nsfw[f"linear_{i}.weight"], nsfw[f"linear_{i}.bias"]
            )
            unsafe = unsafe.relu() if i < 4 else unsafe.sigmoid()
    assert vectors.shape == (2, 768)
    assert np.abs(result.embeddings - vectors.numpy()).max() < 2**-10
    assert np.abs(result.scores["aesthetic"] - aesthetic[:, 0].numpy()).max() < 1e-5
    assert np.abs(result.scores["nsfw"] - unsafe[:, 0].numpy()).max() < 1e-5
