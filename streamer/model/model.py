"""The embedder and its heads behind one door: pixels in, vectors and scores out."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer import plugins
from streamer.config import (
    AestheticHead,
    Config,
    CustomEmbedder,
    CustomHead,
    HeadConfig,
    LinearHeadConfig,
    NsfwHead,
)
from streamer.errors import ConfigError, DependencyError, InvalidRecord, PluginError
from streamer.model import laion
from streamer.model.embedder import ImageEmbedder
from streamer.model.head import Head
from streamer.records import F16, F32, Bools

if TYPE_CHECKING:
    import torch

    from streamer.model.device import Pending, Pixels
    from streamer.model.jpeg.decoder import JpegDecoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """The rows of one batch, in its order."""

    embeddings: F16
    """(n, d) float16, L2-normalised; zeros where the embedder's vector has no finite length above 0"""
    lengths: F32
    """(n,) float32, of the embedder's vectors before that"""
    scores: dict[str, F32]
    """Head name → (n,) float32"""
    failures: Mapping[int, InvalidRecord] = field(default_factory=dict)
    """Row → why it has no vector or no score; the row is NaN from there on."""
    resident: torch.Tensor | None = None
    """(n, d) float32, the embeddings' values in the memory of the GPU that computed them, complete;
    None where they are on the host only"""

    @property
    def embedded(self) -> Bools:
        """(n,) which rows have an embedding"""
        embedded: Bools = is_length(self.lengths)
        return embedded


class Ticket:
    """A batch that was submitted."""

    def __init__(
        self,
        parts: Sequence[Pending],
        dim: int,
        names: tuple[str, ...],
        failures: Mapping[int, InvalidRecord],
    ) -> None:
        self._parts = parts
        self._dim = dim
        self._names = names
        self._failures = failures

    def result(self) -> Embedded:
        """Blocks until the batch is computed. Any thread, any number of times."""
        dim, width = self._dim, self._dim + 1 + len(self._names)
        rows = (
            np.concatenate([p.result() for p in self._parts])
            if self._parts
            else np.empty((0, width), np.float32)
        )
        lengths, *scores = (np.ascontiguousarray(rows[:, at]) for at in range(dim, width))
        return Embedded(
            rows[:, :dim].astype(np.float16), lengths, dict(zip(self._names, scores, strict=True)), self._failures, self._resident()
        )  # fmt: skip

    def _resident(self) -> torch.Tensor | None:
        """None also where a batch had to be halved: putting it together again would wait for the
        batch that computes now."""
        resident = self._parts[0].resident if len(self._parts) == 1 else None
        return None if resident is None else resident[:, : self._dim]


class Model:
    """Makes nothing and checks nothing: `load_model` does. ``embedder`` and ``heads`` fit each
    other and are moved to ``device`` here; ``cuda`` is ``cuda:0``."""

    def __init__(
        self, embedder: ImageEmbedder, heads: Sequence[Head], device: torch.device
    ) -> None:
        from streamer.model.device import indexed, line_for

        self.embedder = embedder
        self.device = indexed(device)
        self.heads = tuple(heads)
        self.dim = embedder.dim
        self.score_names = tuple(h.name for h in self.heads)
        self.batch_limit = 0
        """Images per forward that fit the device's memory, learnt from running out; 0: no limit
        met."""
        self.pixels_shape: tuple[int, ...] | None = None
        """(H, W, 3) of what the embedder makes of an image; None before the first one."""
        self.jpeg_decoders: Sequence[JpegDecoder] = ()
        """For JPEGs that the device decodes, one for each thread that does; none: the CPU decodes
        all images."""
        self.decoding = "decoded on the CPU"
        """What becomes of JPEGs, in words."""
        self._line = line_for(self.device)
        embedder.place(self.device)
        for head in self.heads:
            head.place(self.device)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Each head's name → ``sha256:…``; empty for a custom head without weights."""
        return {head.name: head.fingerprint for head in self.heads}

    def memory(self) -> dict[str, float]:
        """Bytes of the device's memory by kind; empty on the CPU. Any thread; does not block."""
        from streamer.model.device import memory

        return memory(self.device)

    def submit(self, pixels: Sequence[Pixels]) -> Ticket:
        """n images (H, W, 3) uint8 of one shape, n ≥ 0, each on the host or on the device. The
        device thread only.

        On a GPU it returns once copy and computation are queued; it then waits only for the copy of
        the batch before the last. On the CPU it computes. Out of memory: the batch is halved, as
        often as needed, and the size that fits is kept for later batches. Where the embedder or a
        head raises, the rows are computed one by one, and those that raise again are among the
        ticket's failures. Raises DependencyError when not even one image fits, PluginError when the
        embedder or a head is broken.
        """
        parts: list[Pending] = []
        failures: dict[int, InvalidRecord] = {}
        while (done := sum(len(p.rows) for p in parts)) < len(pixels):
            size = min(len(pixels) - done, self.batch_limit or len(pixels))
            failed: dict[int, InvalidRecord] = {}
            part = self._start(pixels[done : done + size], failed)
            if (
                part is None
            ):  # outside the handler: the failed batch's tensors live as long as its traceback
                self._halve(size)
            else:
                parts.append(part)
                failures |= {done + i: error for i, error in failed.items()}
        return Ticket(parts, self.dim, self.score_names, failures)

    def _start(self, pixels: Sequence[Pixels], failed: dict[int, InvalidRecord]) -> Pending | None:
        """None: out of memory."""
        from streamer.model.device import is_out_of_memory

        try:
            return self._line.start(pixels, partial(self._compute, failed))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _halve(self, size: int) -> None:
        self._line.recover()
        if size == 1:
            raise DependencyError(
                "device: out of memory with a single image; use a smaller model, precision: bf16 or another device"
            )
        self.batch_limit = size // 2
        log.warning(
            "device: out of memory with %d images; going on with %d at a time (set batch.size to that)",
            size,
            self.batch_limit,
        )

    def _compute(self, failed: dict[int, InvalidRecord], pixels: torch.Tensor) -> torch.Tensor:
        """→ (n, dim + 1 + heads) float32: what `Embedded` holds, in one tensor, so that one copy
        brings it back. Adds to ``failed``."""
        import torch

        with torch.inference_mode():
            what = f"embedder: {type(self.embedder).__name__}.embed()"
            vectors = _apply(
                self.embedder.embed, pixels, (self.dim,), what, "embedder_failed", failed
            )
            units, lengths = unit_vectors(vectors)
            columns = [units.float(), lengths[:, None]]
            for head in self.heads:
                what = f"heads: {head.name}: {type(head).__name__}.score()"
                columns.append(
                    _apply(head.score, vectors, (), what, "head_failed", failed)[:, None]
                )
            return torch.cat(columns, dim=1)


def unit_vectors(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, d) float32 of any length → (n, d) float16, L2-normalised, zeros where that cannot be, and
    (n,) float32 lengths."""
    import torch

    exact = torch.linalg.vector_norm(vectors.double(), dim=1)
    lengths = exact.float()
    usable = is_length(lengths)
    units = vectors / torch.where(usable, exact, 1.0)[:, None]
    return torch.where(usable[:, None], units, 0.0).half(), lengths


def is_length(lengths: Any) -> Any:
    """(n,) → which are finite and above 0."""
    return (lengths > 1e-12) & (lengths < 3e38)


def _apply(
    function: Callable[[torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    width: tuple[int, ...],
    what: str,
    reason: str,
    failed: dict[int, InvalidRecord],
) -> torch.Tensor:
    """``function(rows)``; where it raises, row by row, so that one image costs no other anything. →
    (n, *width) float32.

    A row that raises alone, too, becomes NaN and is added to ``failed``. Raises PluginError for a
    wrong shape, and when all rows raise and one of zeros does as well: then it is not the images.
    """
    import torch

    from streamer.model.device import is_of_device

    try:
        done = function(rows)
    except (
        Exception
    ) as error:  # one image that a plugin cannot take must not cost the others anything
        if is_of_device(error):
            raise
        first = error
    else:
        _require(done, (len(rows), *width), what)
        return done
    done = rows.new_full((len(rows), *width), float("nan"), dtype=torch.float32)
    tried = [i for i in range(len(rows)) if i not in failed and bool(rows[i].isfinite().all())]
    bad: dict[int, InvalidRecord] = {}
    for i in tried:
        try:
            one = function(rows[i : i + 1])
        except Exception as error:
            if is_of_device(error):
                raise
            bad[i] = InvalidRecord(reason, f"{type(error).__name__}: {error}")
        else:
            _require(one, (1, *width), what)
            done[i] = one[0]
    if len(bad) == len(tried):
        try:
            function(torch.zeros_like(rows[:1]))
        except Exception as error:
            if is_of_device(error):
                raise
            raise PluginError(
                f"{what} fails for every image, the first time with {type(first).__name__}: {first}"
            ) from first
    for failure in bad.values():
        plugins.log.warning(
            "%s cannot take one image, whose record is invalid: %s", what, failure.detail
        )
    failed |= bad
    return done


def load_model(config: Config) -> Model:
    """Makes the embedder and the heads, checks that they fit, moves them to the device and sends
    two images through all of it.

    Blocks while weights are fetched and read. Raises ConfigError with place and fix; TemporaryError
    and DependencyError for weights that cannot be had for now or kept.
    """
    from streamer.model.device import choose
    from streamer.model.jpeg.decoder import choose_decoders

    device = choose(config.device)
    embedder = _make_embedder(config)
    heads = [_make_head(head, embedder, f"heads.{i}") for i, head in enumerate(config.heads)]
    for i, head in enumerate(heads):
        _require_fit(head, embedder, f"heads.{i}")
    if config.dedup is not None and not embedder.normalized:
        raise ConfigError(
            "embedder.normalize: near-duplicates are compared by cosine similarity; set normalize: true, or dedup: off"
        )
    model = Model(embedder, heads, device)
    _probe(model)
    model.jpeg_decoders, model.decoding = choose_decoders(config, embedder, model.device)
    return model


def _make_embedder(config: Config) -> ImageEmbedder:
    chosen = config.embedder
    if isinstance(chosen, CustomEmbedder):
        if config.decode.pixels != "exact":
            raise ConfigError(
                f"decode.pixels: {config.decode.pixels}: for embedders of type timm only; "
                "write it into the embedder's own transform()"
            )
        embedder = plugins.build(chosen.type, ImageEmbedder, chosen.args, "embedder")  # type: ignore[type-abstract]
        kinds = {
            "dim": int,
            "normalized": bool,
            "family": str,
            "fingerprint": str,
            "draft_size": tuple,
        }
        plugins.require_attributes(embedder, kinds, f"embedder: {chosen.type}")
        return embedder
    from streamer.model.timm import TimmImageEmbedder

    return TimmImageEmbedder(
        chosen.model,
        pretrained=chosen.pretrained,
        checkpoint=chosen.checkpoint,
        features=chosen.features,
        precision=chosen.precision,
        normalize=chosen.normalize,
        compile=chosen.compile,
        pixels=config.decode.pixels,
    )


def _fingerprint(head: Head) -> str:
    """Over the tensors and modules among its attributes; empty where it has none."""
    import torch

    from streamer.model import weights

    state: dict[str, torch.Tensor] = {}
    for name, value in vars(head).items():
        if isinstance(value, torch.Tensor):
            state[name] = value
        elif isinstance(value, torch.nn.Module):
            state |= {f"{name}.{key}": tensor for key, tensor in value.state_dict().items()}
    return weights.digest(state, type(head).__name__) if state else ""


def _make_head(chosen: HeadConfig, embedder: ImageEmbedder, where: str) -> Head:
    from streamer.model import heads

    name = chosen.name
    if isinstance(chosen, CustomHead):
        head = plugins.build(chosen.type, Head, chosen.args, where)  # type: ignore[type-abstract]
        head.name = name
        kinds: dict[str, type | tuple[type, ...]] = {
            "dim": int,
            "requires_normalized": bool,
            "range": (tuple, type(None)),
            "families": frozenset,
            "fingerprint": str,
        }
        plugins.require_attributes(head, kinds, f"{where}: {chosen.type}")
        head.fingerprint = head.fingerprint or _fingerprint(head)
        return head
    if isinstance(chosen, AestheticHead):
        return heads.AestheticClassifier(
            chosen.weights, name=name, family=embedder.family, where=where
        )
    if isinstance(chosen, NsfwHead):
        return heads.NsfwClassifier(
            chosen.weights, variant=chosen.variant, name=name, family=embedder.family, where=where
        )
    if isinstance(chosen, LinearHeadConfig):
        return heads.LinearHead(
            chosen.weights,
            name=name,
            requires_normalized=chosen.requires_normalized,
            output=chosen.output,
            where=where,
        )
    return heads.MlpHead(
        chosen.weights,
        name=name,
        requires_normalized=chosen.requires_normalized,
        activation=chosen.activation,
        output=chosen.output,
        where=where,
    )


def _require_fit(head: Head, embedder: ImageEmbedder, where: str) -> None:
    what = f"{where}: {head.name} ({type(head).__name__})"
    fitting = " or ".join(
        f"embedder.model: {laion.MODELS[f]}" for f in sorted(head.families) if f in laion.MODELS
    )
    use = f"use {fitting} with features: auto" if fitting else "use the embedder it was trained on"
    if head.families and embedder.family not in head.families:
        raise ConfigError(
            f"{what} was trained on vectors of {' or '.join(sorted(head.families))} ({head.dim}-d); "
            f"the embedder gives {embedder.dim}-d vectors of {embedder.family}; {use}"
        )
    if head.dim != embedder.dim:
        raise ConfigError(
            f"{what} takes {head.dim}-d vectors; the embedder ({embedder.family}) gives {embedder.dim}-d ones; {use}"
        )
    if head.requires_normalized and not embedder.normalized:
        raise ConfigError(
            f"{what} was trained on vectors of length 1; set embedder.normalize: true"
        )


def _probe(model: Model) -> None:
    """Two images through everything: a wrong plugin is found here, and a compiled model is
    compiled, not in the middle of a batch."""
    from PIL import Image

    ramp, rings = Image.linear_gradient("L"), Image.radial_gradient("L")
    image = Image.merge("RGB", (ramp, rings, ramp.transpose(Image.Transpose.ROTATE_90))).resize(
        (320, 240)
    )
    try:
        pixels = model.embedder.transform(image)
        _require_pixels(pixels, "transform()")
        if model.embedder.decode is not None:
            file = io.BytesIO()
            image.save(file, "JPEG")
            pixels = model.embedder.decode(file.getvalue())
            _require_pixels(pixels, "decode()")
        model.pixels_shape = pixels.shape
        embedded = model.submit([pixels, pixels]).result()
    except PluginError as error:
        raise ConfigError(str(error)) from error
    except plugins.PLUGIN_ERRORS as error:
        raise ConfigError(
            f"embedder, heads: a first image cannot be embedded and scored: {type(error).__name__}: {error}"
        ) from error
    for failure in embedded.failures.values():
        raise ConfigError(
            f"embedder, heads: a first image cannot be embedded and scored: {failure.detail}"
        )
    lengths = embedded.lengths
    if not embedded.embedded.all() or (
        model.embedder.normalized and np.abs(lengths - 1).max() > 1e-3
    ):
        expected = "1" if model.embedder.normalized else "finite"
        raise ConfigError(
            f"embedder: a first image's vector has length {lengths[0]:g}, which must be {expected}; check the weights and the precision"
        )


def _require_pixels(pixels: object, what: str) -> None:
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.ndim == 3
        and pixels.shape[2] == 3
    ):
        got = (
            f"{pixels.dtype} {pixels.shape}"
            if isinstance(pixels, np.ndarray)
            else type(pixels).__name__
        )
        raise ConfigError(
            f"embedder: {what} returned {got}; it must return a numpy array (H, W, 3) of uint8"
        )


def _require(tensor: object, shape: tuple[int, ...], what: str) -> None:
    import torch

    if not (
        isinstance(tensor, torch.Tensor)
        and tuple(tensor.shape) == shape
        and tensor.dtype == torch.float32
    ):
        got = (
            f"{tuple(tensor.shape)} of {tensor.dtype}"
            if isinstance(tensor, torch.Tensor)
            else type(tensor).__name__
        )
        raise PluginError(
            f"{what} returned {got}; it must return a tensor {shape} of torch.float32"
        )
