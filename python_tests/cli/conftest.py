"""Fixtures for tests of the command line: tiny models, a folder of photos, and the program."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_models
from sample_photos import make_photo

from resshift_fast import cli
from resshift_fast.models import catalog


@dataclass(frozen=True)
class Outcome:
    """How a run ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue with tiny models."""
    monkeypatch.setattr(catalog, "MODELS", dict(catalog.MODELS))
    tiny_models.install(catalog.MODELS)


@pytest.fixture
def weights(models: None, tmp_path: Path) -> dict[str, Path]:
    """A weights file for each tiny model, by the model's name."""
    return {name: tiny_models.save_weights(name, tmp_path) for name in (tiny_models.ENLARGE, tiny_models.INPAINT)}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Runs `resshift-fast ARGUMENTS` in this process; a traceback in the output fails the test."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["resshift-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return Outcome(end.value.code or 0, printed.out, printed.err)

    return run


@pytest.fixture
def restore(program: Callable[..., Outcome], weights: dict[str, Path]) -> Callable[..., Outcome]:
    """Runs `resshift-fast restore ARGUMENTS` with a tiny model; `model` chooses which."""

    def run(*arguments: object, model: str = tiny_models.ENLARGE) -> Outcome:
        return program("restore", *arguments, "--model", model, "--weights", weights[model])

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a.png (24×20), b.jpg (12×16) and c.webp (9×7)."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (24, 20)), ("b.jpg", (12, 16)), ("c.webp", (9, 7))):
        make_photo(folder / name, size)
    return folder
