"""What importing costs, which names the package offers, and that imports run one way."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import resshift_fast

ROOT = Path(resshift_fast.__file__).parent
HEAVY = {"torch", "triton", "numpy", "PIL", "cv2", "safetensors", "omegaconf", "tqdm", "typer", "click", "rich"}
SOURCES = sorted(ROOT.rglob("*.py"))

# cli → plots → end_to_end → providers, training, profiling → pipeline → sampler, catalog → models → ops → schedule,
# noise, tiling, native, ranges: a room imports what is lower. Files that are not named here stand beside the pipeline,
# which they don't know.
RANKS = {"native": 0, "ranges": 0, "schedule": 0, "noise": 0, "tiling": 0}
RANKS |= {"ops": 1, "models": 2, "sampler": 3, "catalog": 3}
RANKS |= {"pipeline": 5, "profiling": 6, "providers": 6, "training": 6, "end_to_end": 7, "plots": 8, "cli": 9}
BESIDE = 4
# How these rooms reach the choice of a backend, and nothing else that stands beside the pipeline.
CHOOSES_BACKENDS = {"ops"}


def room(module: str) -> str:
    """ "ops" for "resshift_fast.ops.checks"."""
    return module.split(".")[1]


def package_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, also within functions."""
    package = ("resshift_fast", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*base, *([node.module] if node.module else [])))
            # `from resshift_fast import ops` names the module itself.
            found |= {f"{source}.{alias.name}" for alias in node.names} if source == "resshift_fast" else {source}
    return {name for name in found if name.startswith("resshift_fast.") and not name.endswith(".__version__")}


def printed(program: str) -> list[str]:
    """The words that a program prints in an interpreter of its own."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT.parent).stdout.split()


def test_importing_takes_no_heavy_work():
    loaded = printed("import sys, resshift_fast; print(*{name.split('.')[0] for name in sys.modules})")
    assert "resshift_fast" in loaded and not HEAVY & set(loaded)


def test_the_schedule_needs_no_torch():
    program = "import sys, resshift_fast.schedule as s; s.Schedule().coefficients; print('torch' in sys.modules)"
    assert printed(program) == ["False"]


def test_public_names():
    assert set(resshift_fast.__all__) >= {"sample", "Pipeline", "use_backend", "ops", "__version__"}
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
    names |= {"upsample_conv2d", "vector_quantize", "window_attention"}
    assert set(resshift_fast.ops.__all__) >= names
    assert all(callable(getattr(resshift_fast.ops, name)) for name in resshift_fast.ops.__all__)


def test_sources_are_found():
    assert {"ops/group_norm.py", "models/swin_unet.py", "sampler.py"} <= {str(p.relative_to(ROOT)) for p in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    if own in ("__init__", "__main__"):  # the entrances: they open any room, and only when asked
        return
    rank = RANKS.get(own, BESIDE)
    for module in package_imports(path):
        other = room(module)
        allowed = other == own or RANKS.get(other, BESIDE) < rank
        allowed |= other == "backends" and own in CHOOSES_BACKENDS
        allowed |= rank == BESIDE == RANKS.get(other, BESIDE)
        assert allowed, f"{own} imports {module}, which is above it"


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.py")), ids=lambda path: path.name)
def test_models_choose_no_backend(path):
    source = path.read_text(encoding="utf-8")
    assert not any(word in source for word in ("cuda", "triton", "is_available", "backends"))


DOCUMENTS = [ROOT.parent / "README.md", ROOT / "weights" / "nano-x4.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_have_no_unfilled_place(path):
    assert not re.search(r"@[A-Z]+@", path.read_text(encoding="utf-8"))
