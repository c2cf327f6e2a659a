"""scripts/install_offline.py: the missing packages that it reports, and the pip command that it runs."""

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools  # noqa: F401  before pip's own packages load Python's distutils, after which it refuses to be imported

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def offline():
    spec = importlib.util.spec_from_file_location("install_offline", ROOT / "scripts" / "install_offline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installed(offline, monkeypatch):
    """Versions by package, as if all requirements were installed, in a Python that the system does not manage."""
    wanted = {requirement.name: requirement.specifier for requirement in offline.requirements(build=True)}
    numbers = [f"{number}.999" for number in (*range(2030, 2020, -1), *range(300, -1, -1))]
    versions = {name: next(filter(specifier.contains, numbers)) for name, specifier in wanted.items()}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(offline, "managed", lambda: False)
    return versions


@pytest.fixture
def commands(offline, monkeypatch):
    """The commands that are started; none of them runs."""
    started = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(offline.subprocess, "run", lambda command, **_: started.append(command) or done)
    return started


def test_requirements_are_those_of_pyproject(offline):
    names = {requirement.name for requirement in offline.requirements(build=False)}
    assert {"torch", "numpy", "omegaconf", "typer", "pytest", "triton", "ruff", "matplotlib", "tensorboard"} <= names
    assert {requirement.name for requirement in offline.requirements(build=True)} - names == {"setuptools", "ninja"}
    assert set(offline.PARTS) <= names | {"ninja"}


def test_only_what_the_package_needs_is_required(offline):
    """A machine for measuring lacks some of what is at hand where the package is developed."""
    project = offline.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["optional-dependencies"][name] for name in ("dev", "bench", "train")]
    extras = {offline.Requirement(text).name for one in lists for text in one}
    assert extras <= set(offline.PARTS)


@pytest.mark.parametrize("wheel", [False, True], ids=["checkout", "wheel"])
def test_pip_needs_no_network(wheel, offline, installed, commands, tmp_path):
    file = tmp_path / "made.whl"
    file.write_bytes(b"")
    assert offline.main(["--wheel", str(file)] if wheel else []) == 0
    pip, shown = commands
    assert pip[:4] == [sys.executable, "-m", "pip", "install"]
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(pip)
    assert pip[-2:] == (["--force-reinstall", str(file)] if wheel else ["--editable", str(ROOT)])
    assert shown[1] == "-I"  # otherwise the current folder would be shown instead of the installed package


def test_missing_packages_of_optional_parts_are_named_and_no_error(offline, installed, commands, capsys):
    for name in offline.PARTS:
        del installed[name]
    assert offline.main([]) == 0 and commands
    out, err = capsys.readouterr()
    assert not err and len(out.splitlines()) == len(offline.PARTS)
    assert "omegaconf>=2.3 is missing, for official YAML files: Pipeline.from_config" in out
    assert "make lint" in out


@pytest.mark.parametrize("name", ["torch", "numpy", "safetensors", "typer", "setuptools"])
def test_a_missing_required_package_is_an_error_of_one_line(name, offline, installed, commands, capsys):
    del installed[name]
    assert offline.main([]) == 2 and not commands
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert err.startswith("error: nothing was installed: ") and f"{name}>=" in err and "is missing" in err


def test_a_version_that_is_too_old_is_an_error(offline, installed, commands, capsys):
    installed["torch"] = "2.9.1+cu130"
    assert offline.main([]) == 2 and not commands
    assert "torch 2.9.1+cu130 is here, torch>=2.10 is needed" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.12.0.dev20260101+cu130"])
def test_local_and_development_builds_are_new_enough(version, offline, installed, commands):
    installed["torch"] = version
    assert offline.main(["--check"]) == 0 and not commands


def test_a_wheel_needs_nothing_to_build_with(offline, installed, commands, tmp_path):
    del installed["setuptools"], installed["ninja"]
    file = tmp_path / "made.whl"
    file.write_bytes(b"")
    assert offline.main(["--wheel", str(file)]) == 0


def test_a_missing_wheel(offline, installed, commands, capsys):
    assert offline.main(["--wheel", "no.whl"]) == 2 and not commands
    assert "there is no file no.whl" in capsys.readouterr().err


def test_a_python_that_the_system_manages_is_not_changed(offline, installed, commands, monkeypatch, capsys):
    monkeypatch.setattr(offline, "managed", lambda: True)
    assert offline.main([]) == 2 and not commands
    assert "python3 -m venv --system-site-packages" in capsys.readouterr().err
    assert offline.main(["--check"]) == 0


def test_a_pip_that_fails_is_a_failure(offline, installed, monkeypatch, capsys):
    monkeypatch.setattr(offline.subprocess, "run", lambda command, **_: SimpleNamespace(returncode=3))
    assert offline.main([]) == 1
    assert "pip failed" in capsys.readouterr().err
