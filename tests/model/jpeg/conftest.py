from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

import pytest


@pytest.fixture
def without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that launch kernels can be imported where there is no CuPy, which only GPUs
    need."""
    if find_spec("cupy") is None:
        monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
