from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

import pytest

from tests.model.jpeg.line import Line


@pytest.fixture
def without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that launch kernels can be imported where there is no CuPy, which only GPUs
    need."""
    if find_spec("cupy") is None:
        monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))


@pytest.fixture
def lines() -> Iterator[list[Line]]:
    made: list[Line] = []
    yield made
    for line in made:
        line.close()
