"""A state dict into a timm model, strictly: every key is used or named in an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Set
from functools import cache

import torch

from streamer.errors import ConfigError

State = dict[str, torch.Tensor]


def load(
    model: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    classifier: Callable[[], Set[str]],
    where: str,
) -> None:
    """Loads ``state`` into ``model``. ``classifier`` gives the keys that ``model`` was made
    without: only they may be left over. It is asked where something is.

    A file in another project's layout (open_clip, the model's authors) is converted with the
    model's own timm filter first. Raises ConfigError naming the keys that are missing, left over or
    of another shape.
    """
    wanted, removed = model.state_dict(), cache(classifier)
    found = _fitting(state, wanted, removed)
    if found.keys() != wanted.keys():
        found = _fitting(_converted(model, state), wanted, removed)
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


def _fitting(
    state: Mapping[str, torch.Tensor], wanted: State, removed: Callable[[], Set[str]]
) -> State:
    """``state`` without what is the classifier's."""
    left_over = state.keys() - wanted.keys()
    if left_over:
        left_over &= removed()
    return {key: tensor for key, tensor in state.items() if key not in left_over}


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
