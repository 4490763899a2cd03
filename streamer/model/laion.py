"""LAION's published heads: where they are, their sha256, and which embedder each was trained on.

Sources: https://github.com/christophschuhmann/improved-aesthetic-predictor (V2),
https://github.com/LAION-AI/aesthetic-predictor (V1),
https://github.com/LAION-AI/CLIP-based-NSFW-Detector (folder ``models``; MIT). All take OpenAI's
CLIP image embedding, projected and L2-normalised.
"""

from __future__ import annotations

from typing import NamedTuple

L14 = "openai-clip-vit-l-14"
B32 = "openai-clip-vit-b-32"
B16 = "openai-clip-vit-b-16"

MODELS = {
    L14: "vit_large_patch14_clip_quickgelu_224.openai",
    B32: "vit_base_patch32_clip_quickgelu_224.openai",
    B16: "vit_base_patch16_clip_quickgelu_224.openai",
}
"""Family → timm's name. The plain ``…_clip_224.openai`` have another GELU than the originals, so
that they are no such family."""

DIMS = {L14: 768, B32: 512, B16: 512}


class Published(NamedTuple):
    url: str
    sha256: str
    family: str

    @property
    def reference(self) -> str:
        return f"{self.url}#sha256={self.sha256}"


_V1 = "https://github.com/LAION-AI/aesthetic-predictor/raw/main"
_V2 = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main"
_NSFW = "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/raw/21072a2a38e6d2bb294be03c005aaa9a65778e47/models"

AESTHETIC = (
    Published(
        f"{_V2}/sac+logos+ava1-l14-linearMSE.pth",
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        L14,
    ),
    Published(
        f"{_V1}/sa_0_4_vit_b_32_linear.pth",
        "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
        B32,
    ),
    Published(
        f"{_V1}/sa_0_4_vit_b_16_linear.pth",
        "8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0",
        B16,
    ),
    Published(
        f"{_V1}/sa_0_4_vit_l_14_linear.pth",
        "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
        L14,
    ),
)
"""The first of a family is its default."""

NSFW = (
    Published(
        f"{_NSFW}/clip_ViT-L-14_openai_binary_nsfw_head.pth",
        "fc4d70d2eea4e948d13bc27bf7114f5e8d3bd317eb01a4b49b35dcf1a3d672c6",
        L14,
    ),
    Published(
        f"{_NSFW}/clip_ViT-B-32_openai_binary_nsfw_head.pth",
        "615f35e1364b40b14c30e770544345b82d8e558240692ad72eb8eafa466ef25c",
        B32,
    ),
)


def family_of(architecture: str, tag: str) -> str:
    """The family of a CLIP tower's projected embedding: OpenAI's three by their names here, any
    other by its own."""
    name = f"{architecture}.{tag}" if tag else architecture
    return next((family for family, model in MODELS.items() if model == name), name)


def own_tag(architecture: str) -> str:
    """``openai`` where the bare architecture is one of OpenAI's, else nothing.

    Somebody who brings weights of such an architecture means OpenAI's preprocessing; timm's first
    tag for it is another's.
    """
    return "openai" if f"{architecture}.openai" in MODELS.values() else ""
