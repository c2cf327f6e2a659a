"""docker/: what images are built from, and what they set, exists. scripts/check_docker.sh builds and tries them."""

import ast
import re
import shlex
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from resshift_fast.core.cache import CACHE_VARIABLE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest's

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Names and arguments of a file's instructions, without comments, continued lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def values(path: Path, *names: str) -> dict[str, str]:
    """What ARG or ENV instructions set, by name; "" without a default."""
    words = [word for name, rest in instructions(path) if name in names for word in shlex.split(rest)]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


@pytest.fixture(params=FILES, ids=lambda path: path.stem.partition(".")[0])
def file(request) -> Path:
    return request.param


def test_there_is_one_for_cpus_and_one_for_gpus():
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


def test_python_is_one_that_the_package_names(file):
    version = re.fullmatch(r"docker\.io/library/python:(3\.\d+)-slim", values(file, "ARG")["BASE"])[1]
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    assert {rest.split()[0] for name, rest in instructions(file) if name == "FROM"} == {"$BASE"}


def test_requirements_and_extras_are_the_projects(file):
    arguments = values(file, "ARG")
    assert arguments["TORCH"] in PROJECT["dependencies"]
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])


def test_architectures_are_those_of_a_wheel():
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    expected = ast.literal_eval(re.search(r"^CUDA_ARCHITECTURES = (.*)$", source, re.MULTILINE)[1])
    named = values(FILES[1], "ARG")["ARCHITECTURES"].split()
    assert [name.removesuffix("+PTX") for name in named] == list(expected)
    assert named[-1].endswith("+PTX")


def test_variables_are_ones_that_the_project_reads(file):
    source = (ROOT / "setup.py").read_text(encoding="utf-8") + CACHE_VARIABLE
    text = file.read_text(encoding="utf-8")
    for name in set(re.findall(r"RESSHIFT_FAST_\w+|MAX_JOBS|TORCH_CUDA_ARCH_LIST|CUDA_HOME", text)):
        assert name in source or re.sub("CPU|CUDA", "{name.upper()}", name) in source, name


def test_the_program_is_started_as_the_first_process(file):
    # A shell in between would keep signals to itself.
    found = dict(instructions(file))
    assert found["ENTRYPOINT"] == f'["{next(iter(PROJECT["scripts"]))}"]'
    assert found["STOPSIGNAL"] == "SIGINT"
    assert found["USER"] == "65534:65534"
    folders = {found["VOLUME"], values(file, "ENV")["HOME"], values(file, "ENV")[CACHE_VARIABLE]}
    assert folders == {"/cache"} and ("RUN", "mkdir --mode=1777 /cache /work") in instructions(file)


def test_the_context_has_all_that_is_built_and_nothing_else():
    """By the rules of .dockerignore: the last pattern that fits decides."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert rules[0] == "*"

    def sent(path: str) -> bool:
        kept = True
        for rule in rules:
            pattern = rule.removeprefix("!").removeprefix("**/")
            parts = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
            inside = any(fnmatch(part, pattern) for part in ([Path(p).name for p in parts] if "**/" in rule else parts))
            kept = rule.startswith("!") if inside else kept
        return kept

    folders = {"csrc", "kernels", "resshift_fast"}
    expected = folders | {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
    assert {path.name for path in ROOT.iterdir() if sent(path.name)} == expected
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()):
        made_here = path.suffix == ".so" or "__pycache__" in path.parts
        assert sent(str(path.relative_to(ROOT))) != made_here, path
    assert not sent("resshift_fast/_cpu.abi3.so") and not sent("csrc/cpu/__pycache__/a.pyc") and not sent(".git/config")


def test_the_commands_in_the_first_lines_name_the_file_and_its_arguments(file):
    head = [line.removeprefix("#").strip() for line in file.read_text(encoding="utf-8").splitlines()[1:3]]
    build, run = (shlex.split(line) for line in head)
    assert build[:2] == ["docker", "build"] and build[build.index("-f") + 1] == f"docker/{file.name}"
    given = {build[i + 1].partition("=")[0] for i, word in enumerate(build) if word == "--build-arg"}
    assert given <= set(values(file, "ARG"))
    assert run[:3] == ["docker", "run", "--rm"] and build[build.index("-t") + 1] in run
