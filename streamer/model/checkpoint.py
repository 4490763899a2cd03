"""A state dict into a timm model, strictly: every key is used or named in an error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import torch

from streamer.errors import ConfigError

State = dict[str, torch.Tensor]


def load(
    model: torch.nn.Module, state: Mapping[str, torch.Tensor], removed: tuple[str, ...], where: str
) -> None:
    """Loads ``state`` into ``model``. ``removed`` are the classifier modules that ``model`` was
    made without: only their keys may be left over.

    A file in another project's layout (open_clip, the model's authors) is converted with the
    model's own timm filter first. Raises ConfigError naming the keys that are missing, left over or
    of another shape.
    """
    wanted = model.state_dict()
    found = _without(state, removed, wanted)
    if found.keys() != wanted.keys():
        found = _without(_converted(model, state), removed, wanted)
    problems = [
        *_named("missing", wanted.keys() - found.keys()),
        *_named("unexpected", found.keys() - wanted.keys()),
        *_named(
            "of another shape",
            (k for k in wanted.keys() & found.keys() if wanted[k].shape != found[k].shape),
        ),
    ]
    if problems:
        raise ConfigError(
            f"{where}: the checkpoint does not fit the model: {'; '.join(problems)}. Use the checkpoint's own model name."
        )
    model.load_state_dict(found, strict=True)


def _without(state: Mapping[str, torch.Tensor], removed: tuple[str, ...], wanted: State) -> State:
    prefixes = tuple(f"{module}." for module in removed)
    return {
        k: v for k, v in state.items() if k in wanted or not (prefixes and k.startswith(prefixes))
    }


def _converted(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> State:
    """What timm's filter for this architecture makes of ``state``; ``state`` itself where it has
    none or does not know the layout."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(state)
    try:
        converted: State = convert(dict(state), model)
    except (
        KeyError,
        RuntimeError,
        ValueError,
        TypeError,
        AssertionError,
        AttributeError,
        IndexError,
    ):
        return dict(state)  # the filter met keys it was not written for: they are named as they are
    sizes = {t.numel() for t in state.values()}
    if "pos_embed" in converted and converted["pos_embed"].numel() not in sizes:
        return dict(
            state
        )  # the filter resampled position embeddings of another image size: that is another model
    return converted


def _named(problem: str, keys: Iterable[str]) -> list[str]:
    names = sorted(keys)
    if not names:
        return []
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return [f"{len(names)} {problem} ({', '.join(names[:4])}{more})"]
