"""What the steps run on: the GPU, the versions, the installed package, and the folder that the tests run in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What the steps read, without the package: Python would import a copy here instead of the installed one.
CARRIED = ("benchmarks", "examples", "python_tests", "scripts", "csrc", "Makefile", "README.md", "pyproject.toml")
IGNORED = shutil.ignore_patterns("__pycache__", "results")
PROBE_SECONDS = 120.0  # the first import of torch can take long

PROBE = """
import json, platform, sys
found = {"python": platform.python_version()}
try:
    import torch
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    import triton
    found |= {"triton": triton.__version__}
    import resshift_fast
    from resshift_fast.backends import native
    found |= {"package": resshift_fast.__file__}
    found |= {f"{name} library": native.missing(name) or "loaded" for name in native.LIBRARIES}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "compute capability": f"{gpu.major}.{gpu.minor}"}
        found |= {"memory MiB": gpu.total_memory // 2**20}
except ImportError as error:
    found["missing"] = error.name or str(error)
print(json.dumps(found))
"""


class Unusable(RuntimeError):
    """Nothing can be run here; the message is one line."""


def probe(rehearsal: bool = False) -> dict[str, Any]:
    """The machine, as found by a process that imports the installed package.

    Raises:
        Unusable: if something is missing that every step needs; a rehearsal needs no GPU and no CUDA library.
    """
    try:
        # -I excludes the current folder, which may contain a copy that is not installed.
        done = subprocess.run(
            [sys.executable, "-I", "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Unusable(f"importing torch took more than {PROBE_SECONDS:.0f} s") from None
    if done.returncode:
        raise Unusable(f"importing the package ended with {done.returncode}: {last_line(done.stderr)}")
    found = json.loads(done.stdout.splitlines()[-1])
    if missing := found.get("missing"):
        torch = missing in ("torch", "triton")
        hint = "install torch with CUDA and Triton" if torch else "make gpu-offline installs it"
        raise Unusable(f"{missing} is not installed in {sys.executable}; {hint}")
    if "gpu" not in found and not rehearsal:
        raise Unusable(f"there is no GPU: torch {found['torch']} finds none")
    return found


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1][:300]


def place(package: str, folder: Path) -> Path:
    """The folder to run the steps in, where `import resshift_fast` finds the installed package.

    An editable installation is the checkout itself. Any other one would be shadowed by the checkout's folder, so what
    the steps read is copied.

    Args:
        package: the file of the installed package.
        folder: for the copy.
    """
    if Path(package).resolve().is_relative_to(ROOT / "resshift_fast"):
        return ROOT
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=IGNORED)
        elif source.exists():
            shutil.copy2(source, folder / name)
    return folder
