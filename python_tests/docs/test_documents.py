"""README and docs: their Python runs, their commands parse, their links point to files, the diagram is current."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from sample_photos import make_mask, make_photo

from resshift_fast import Pipeline
from resshift_fast.cli.app import app
from scripts.check_types import FENCED

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATOR_PAGE = ROOT / "docs/add-an-operator.md"
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z")


class Example(NamedTuple):
    """A block of code of a page; `skipped` says why it is not run, "" if it is."""

    page: Path
    language: str
    code: str
    skipped: str

    @property
    def title(self) -> str:
        return f"{self.page.relative_to(ROOT)}-{self.code.strip().splitlines()[0][:40]}"


def examples(page: Path) -> list[Example]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    marks = [(block, NOT_RUN.search(text[: block.start()])) for block in FENCED.finditer(text)]
    return [Example(page, block[1], block[2], mark[1] if mark else "") for block, mark in marks]


def commands(page: Path) -> list[list[str]]:
    """The calls of `resshift-fast` in blocks without a language and in indented ones, lines continued, words split."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?: {4})?resshift-fast (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


PYTHON = [x for page in PAGES if page != OPERATOR_PAGE for x in examples(page) if x.language == "python"]
COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """The variables that examples use without defining them, and a working directory with the files that they read."""
    monkeypatch.chdir(tmp_path)
    photo = Image.open(make_photo(tmp_path / "photo.jpg", (24, 20)))
    make_mask(tmp_path / "mask.png", (24, 20))
    channels = {name: torch.zeros(1, 64) for name in ("scale", "shift")}
    pipe = Pipeline.from_pretrained(device="cpu")
    tensors = {"x": torch.randn(1, 64, 8, 8), "weight": torch.ones(64), "bias": torch.zeros(64), **channels}
    return {"array": np.asarray(photo), "tensor": torch.rand(3, 20, 24), "pil_image": photo, "pipe": pipe, **tensors}


@pytest.mark.parametrize("example", [pytest.param(x, id=x.title) for x in PYTHON if not x.skipped])
def test_python_examples_run(example, namespace):
    exec(compile(example.code, str(example.page), "exec"), namespace)


def test_examples_that_are_not_run():
    """The complete list: a mark on another example needs a line here."""
    assert [(x.page.name, x.skipped) for x in PYTHON if x.skipped] == [
        ("README.md", "needs a GPU, and downloads weights"),
        ("README.md", "torch.compile takes minutes"),
        ("faces.md", "needs weights that are downloaded, and another package"),
    ]
    assert len(PYTHON) > 4


@pytest.mark.slow
def test_operator_page_runs(tmp_path):
    """The page's code blocks form one test file, which runs in its own process because it registers an operator."""
    blocks = [x.code for x in examples(OPERATOR_PAGE) if x.language == "python" and not x.skipped]
    (tmp_path / "test_gated_add.py").write_text("\n\n".join(blocks), encoding="utf-8")
    environment = {**os.environ, "RESSHIFT_FAST_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^17 passed", run.stdout, re.MULTILINE), run.stdout


def parse(words: list[str]) -> None:
    """Parse a command line without running it. Raises click's errors for unknown commands and options."""
    command, context = typer.main.get_command(app), None
    while True:
        kind = command.context_class
        context = kind(command, parent=context, info_name=words[0] if words else "")
        children = getattr(command, "commands", None)
        if not children:
            command.parse_args(context, list(words))
            return
        assert words and words[0] in children, f"no command {' '.join(words[:1])!r}; there are {', '.join(children)}"
        command, words = children[words[0]], words[1:]


@pytest.mark.parametrize("page, words", [pytest.param(p, w, id=f"{p.name}-{' '.join(w)[:60]}") for p, w in COMMANDS])
def test_commands_exist(page, words):
    parse(words)


def test_a_wrong_option_is_found():
    assert len(COMMANDS) > 8
    with pytest.raises(Exception, match="--no-such"):
        parse(["restore", "photo.jpg", "-o", "x.png", "--no-such"])
    with pytest.raises(AssertionError, match="no command 'restor'"):
        parse(["restor", "photo.jpg"])


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_diagram_of_rooms_is_current():
    script = ROOT / "scripts/draw_rooms.py"
    run = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
