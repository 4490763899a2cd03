"""What turns an image into a vector: the interface that `TimmImageEmbedder` and every
``pkg.mod:Class`` fill."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from streamer.records import U8

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from streamer.model.geometry import Geometry


class ImageEmbedder(ABC):
    """One model and its preprocessing. Made once at start-up; every attribute below is set when
    ``__init__`` returns."""

    dim: int
    """d, the length of a vector."""
    normalized: bool
    """True when `embed` returns vectors of length 1 (L2). Deduplication and LAION's heads need it."""
    family: str
    """The space the vectors live in, which heads are checked against: ``openai-clip-vit-l-14``, …,
    else the model's own name."""
    fingerprint: str
    """``sha256:…`` over all that changes a vector beyond rounding: weights, preprocessing,
    features, normalisation; not precision, device, compilation or batch size. The same on every
    replica: a dataset is bound to it."""
    draft_size: tuple[int, int] = (0, 0)
    """(width, height) in pixels: a JPEG may be shrunk while it is decoded (``Image.draft``) to no
    less than this. (0, 0): never."""
    geometry: Geometry | None = None
    """What `transform` does, where it is a resize and a crop and nothing else: then the device may
    decode and do it. None: only `transform` knows."""
    device: torch.device
    """Where `embed` runs; set by `place`."""

    decode: ClassVar[Callable[..., U8] | None] = None
    """A method ``decode(self, data: bytes) -> U8`` replaces Pillow *and* `transform`: image file
    bytes → what `transform` returns. Called on decode threads, concurrently. Whatever it raises
    makes that one record ``invalid``, reason ``decoder_failed``."""

    @abstractmethod
    def transform(self, image: Image.Image) -> U8:
        """RGB image → (H, W, 3) uint8, H and W the same for every image: resize and crop only,
        `embed` normalises.

        Called on decode threads, concurrently: it must not change the object. It may block for as
        long as the work takes. Whatever it raises, or another H or W, makes that one record
        ``invalid``, reason ``decoder_failed``.
        """

    @abstractmethod
    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, H, W, 3) uint8 on `device` → (n, `dim`) float32 on `device`; n ≥ 1, any n. The device
        thread only; without gradients.

        Out of memory (``torch.OutOfMemoryError``) may leave it: the caller halves the batch and
        calls again. After anything else that it raises it is called for each row alone, and a row
        that raises again makes that one record ``invalid``, reason ``embedder_failed``. Raising for
        every row of a batch and for an image of zeros too, or another shape or type, ends the
        process with exit code 1.
        """

    def place(self, device: torch.device) -> None:
        """Called once, before the first `embed`, with the device of the process.

        The base class moves every attribute that is a tensor or a torch module; override it for
        anything else.
        """
        move(self, device)
        self.device = device


def move(owner: object, device: torch.device) -> None:
    """Moves ``owner``'s tensors and modules, held directly as attributes, to ``device``."""
    import torch

    for name, value in vars(owner).items():
        if isinstance(value, (torch.Tensor, torch.nn.Module)):
            setattr(owner, name, value.to(device))
