"""Fixtures of the tests of benchmarks."""

from importlib import import_module
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Import a benchmark as if it were run as a script."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return import_module
