"""What an import of the package loads, and the names that it offers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import resshift_fast

ROOT = Path(resshift_fast.__file__).parent
HEAVY = {"torch", "triton", "numpy", "PIL", "cv2", "safetensors", "omegaconf", "tqdm", "typer", "click", "rich"}


def printed(program: str) -> list[str]:
    """The words that a program prints in a new interpreter."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT.parent).stdout.split()


def test_importing_loads_no_heavy_package():
    loaded = printed("import sys, resshift_fast; print(*{name.split('.')[0] for name in sys.modules})")
    assert "resshift_fast" in loaded and not HEAVY & set(loaded)


def test_the_schedule_needs_no_torch():
    program = "import sys; from resshift_fast.diffusion.schedule import Schedule; Schedule().coefficients; "
    program += "print('torch' in sys.modules)"
    assert printed(program) == ["False"]


def test_public_names():
    assert set(resshift_fast.__all__) >= {"sample", "Pipeline", "Photo", "use_backend", "ops", "__version__"}
    assert dir(resshift_fast) == sorted(resshift_fast.__all__)
    for name in resshift_fast.__all__:
        assert getattr(resshift_fast, name) is not None
    assert callable(resshift_fast.sample) and isinstance(resshift_fast.Pipeline, type)
    assert resshift_fast.ops is sys.modules["resshift_fast.ops"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'resshift_fast' has no attribute 'restore'"):
        resshift_fast.restore  # noqa: B018


def test_operators_are_listed():
    names = {"conv2d", "group_norm", "posterior_step", "prior_sample", "q_sample", "swin_mlp"}
    names |= {"upsample_conv2d", "vector_quantize", "window_attention", "window_attention_proj"}
    assert set(resshift_fast.ops.__all__) >= names
    assert all(callable(getattr(resshift_fast.ops, name)) for name in resshift_fast.ops.__all__)


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.py")), ids=lambda path: path.name)
def test_models_choose_no_backend(path):
    source = path.read_text(encoding="utf-8")
    assert not any(word in source for word in ("cuda", "triton", "is_available", "backends"))


DOCUMENTS = [ROOT.parent / "README.md", *sorted((ROOT / "weights").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_have_no_unfilled_placeholder(path):
    assert not re.search(r"@[A-Z]+@", path.read_text(encoding="utf-8"))
