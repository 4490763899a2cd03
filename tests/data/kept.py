"""Copies into this folder what it keeps of the large sets: ``python tests/data/kept.py``, where
../shared/data lies beside the repository. README.md says what each file is; LICENSES.md under which
terms."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import safetensors.torch

FOLDER = Path(__file__).parent
LARGE_SETS = FOLDER.parents[1] / "../shared/data"

HOSTILE = {
    "generated": ["synthetic/*"],
    # PngSuite; and files of a few bytes that broke a decoder
    "image-rs/image-png": [
        "pngsuite/*",
        "malformed/pngbug_x_*",
        "malformed/pngbug_issue_403.png",
        "malformed/pngbug_acid2.png",
    ],
    "image-rs/image": [
        "fuzz_crash/*.tga",
        "fuzz_crash/*.ico",
        "fuzz_crash/imagers_zero-loop-count.gif",
        "fuzz_crash/imagers_oss-fuzz-36829.jpeg",
        "malformed/imagers_Bad_*",
        "animated_multiframe/imagers_*",
        "formats/imagers_issue_1455_oversized.gif",
        "formats/imagers_acid2.ff",
        "formats/imagers_overexposed_gradient.hdr",
    ],
    # Those that libavif's list calls "same as libavif"; others there are not free
    "AOMediaCodec/libavif": [
        "avif/libavif_extended_pixi.avif",
        "avif/libavif_draw_points_*",
        "avif/libavif_alpha_noispe.avif",
        "avif/libavif_color_*",
        "avif/libavif_colors-animated-*",
        "avif/libavif_abc_*",
        "avif/libavif_sofa_*",
        "formats/libavif_circle-*",
        "formats/libavif_paris_*",
    ],
    "libjxl/conformance": ["jxl/grayscale_jpeg.jxl"],
    # Derived from the portrait of Grace Hopper, from bmpsuite, or without any picture in them
    "python-pillow/Pillow": [
        "*/hopper*",
        "malformed/bmp_*",
        "bomb/*",
        "fuzz_crash/*",
        "malformed/cross_scan_line.png",
        "malformed/unbound_variable.jp2",
        "malformed/zero_*",
        "malformed/duplicate_frame.gif",
        "malformed/multiple_exif.jpg",
        "malformed/empty_gps_ifd.jpg",
        "alpha_palette/tRNS_null_1x1.png",
        "animated_multiframe/dispose_none.gif",
        "animated_multiframe/dispose_prev*",
        "animated_multiframe/different_transparency_merged.png",
        "animated_multiframe/multipage_*",
        "animated_multiframe/comment_after_last_frame.gif",
        "exif_orientation/orientation_rectangle.jpg",
        "high_bitdepth/16bit.s.tif",
        "high_bitdepth/16_bit_binary.pgm",
    ],
}
"""Source → patterns of its files; all other files are left out."""
LARGEST_BYTES = 10_000
LARGER = ("synthetic/*", "*/libavif_*")
"""What may be larger than that."""
COLUMNS = [
    "file",
    "category",
    "source_repo",
    "licence",
    "note",
    "bytes",
    "sha256",
    "pillow_outcome",
    "format",
    "mode",
    "size",
    "frames",
    "size_after_exif",
]

HEADS = [
    "sa_0_4_vit_l_14_linear.pth",
    "sa_0_4_vit_b_32_linear.pth",
    "sa_0_4_vit_b_16_linear.pth",
    "clip_ViT-L-14_openai_binary_nsfw_head.pth",
    "clip_ViT-B-32_openai_binary_nsfw_head.pth",
]
SAVED_MODELS = ["laion_clip_nsfw_vit_l_14", "laion_clip_nsfw_vit_b_32"]


def keep_hostile(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    with (source / "manifest.tsv").open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines, delimiter="\t") if is_kept(row)]
    for row in rows:
        (target / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / row["file"], target / row["file"])
    with (target / "manifest.tsv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(
            lines, COLUMNS, delimiter="\t", extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def is_kept(row: dict[str, str]) -> bool:
    if int(row["bytes"]) > LARGEST_BYTES and not matches(row["file"], LARGER):
        return False
    return matches(row["file"], HOSTILE.get(row["source_repo"], ()))


def matches(file: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(file, pattern) for pattern in patterns)


def keep_heads(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in HEADS:
        shutil.copyfile(source / name, target / name)
    for name in SAVED_MODELS:  # the weights in them are those of the .pth files
        state = safetensors.torch.load_file(source / f"{name}.safetensors")
        tables = {key: value for key, value in state.items() if key.startswith("categorical.")}
        safetensors.torch.save_file(tables, target / f"{name}.categorical.safetensors")
    with np.load(source / "golden.npz") as file:
        np.savez_compressed(target / "golden.npz", **few_rows(dict(file)))


def few_rows(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the random vectors, the 24 for which the original and its port differ most, and 8 in
    float32; all others are few."""
    for dim in ("l14", "b32"):
        differ = np.argsort(-np.abs(golden[f"{dim}_tf"] - golden[f"{dim}_naive"]))[:24]
        for name in ("x", "tf", "naive"):
            golden[f"{dim}_{name}"] = golden[f"{dim}_{name}"][differ]
        for name in ("x32", "tf32"):
            golden[f"{dim}_{name}"] = golden[f"{dim}_{name}"][:8]
    return golden


if __name__ == "__main__":
    keep_hostile(LARGE_SETS / "hostile", FOLDER / "hostile")
    keep_heads(LARGE_SETS / "heads", FOLDER / "heads")
