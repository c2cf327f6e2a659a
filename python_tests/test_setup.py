"""setup.py: what is built with which tools, and that an installation without them works and names what is missing."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="looks for Unix tools")


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("resshift_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def executable(path: Path, text: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A PATH without tools, and no environment variable that names one."""
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "RESSHIFT_FAST_CPU", "RESSHIFT_FAST_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        shutil, "which", lambda name, find=shutil.which: None if name.startswith("/usr") else find(name)
    )
    return tmp_path


class TestTools:
    def test_the_compiler_is_cxx_before_any_other(self, build, bare, monkeypatch):
        executable(bare / "g++")
        executable(bare / "mycc")
        assert build.compiler() == "g++"
        monkeypatch.setenv("CXX", "mycc")
        assert build.compiler() == "mycc"

    def test_a_missing_compiler_is_an_error(self, build, bare):
        with pytest.raises(build.Missing, match="no C\\+\\+ compiler"):
            build.compiler()

    def test_nvcc_is_taken_from_cuda_home_then_path_then_the_packages(self, build, bare, monkeypatch):
        site = bare / "site"
        packaged = executable(site / "nvidia/cu13/bin/nvcc")
        with pytest.raises(build.Missing, match="nvidia-cuda-nvcc"):
            build.Cuda.find(str(site))  # without headers and libraries it cannot be used
        for file in ("include/cuda_runtime.h", "lib/libcudart_static.a"):
            (packaged.parents[1] / file).parent.mkdir(exist_ok=True)
            (packaged.parents[1] / file).touch()
        found = build.Cuda.find(str(site))
        assert (found.nvcc, found.lib) == (str(packaged), [str(packaged.parents[1] / "lib")])
        on_path = executable(bare / "nvcc")
        assert build.Cuda.find(str(site)).nvcc == str(on_path)
        home = executable(bare / "home/bin/nvcc")
        monkeypatch.setenv("CUDA_HOME", str(bare / "home"))
        assert build.Cuda.find(str(site)).nvcc == str(home)

    def test_torch_is_that_of_the_interpreter(self, build):
        import torch

        found = build.Torch.find()
        assert found.version == torch.__version__ and Path(found.include[0], "torch/csrc/stable/library.h").exists()

    @pytest.mark.parametrize("version", ["2.9.1", "1.13.0+cu117"])
    def test_an_older_torch_is_refused(self, build, monkeypatch, version):
        answer = json.dumps({"version": version, "include": [], "lib": "", "site": "", "capabilities": []})
        done = subprocess.CompletedProcess([], 0, stdout=f"{answer}\n")
        monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: done)
        with pytest.raises(build.Missing, match="at least 2.10"):
            build.Torch.find()


class TestArchitectures:
    def codes(self, options: list[str]) -> list[str]:
        return [option.rpartition("code=")[2] for option in options if "code=" in option]

    def test_all_that_nvcc_knows_and_ptx_of_the_oldest_and_the_newest(self, build, bare):
        nvcc = executable(bare / "nvcc", "echo sm_75; echo sm_80; echo sm_90; echo sm_103")
        assert self.codes(build.Cuda(str(nvcc)).architectures([])) == ["sm_80", "compute_80", "sm_90", "compute_90"]

    def test_only_the_gpu_that_is_present(self, build, bare):
        assert self.codes(build.Cuda("nvcc").architectures(["8.9"])) == ["sm_89"]

    def test_a_gpu_that_is_too_old_is_left_out_and_alone_is_an_error(self, build, bare):
        assert self.codes(build.Cuda("nvcc").architectures(["7.5", "8.6"])) == ["sm_86"]
        with pytest.raises(build.Missing, match="compute capability 7.5, at least 8.0"):
            build.Cuda("nvcc").architectures(["7.5"])

    @pytest.mark.parametrize("text", ["8.0 9.0a+PTX", "8.0;9.0a+PTX", " 8.0, 9.0a+PTX "])
    def test_the_environments_list_wins(self, build, bare, monkeypatch, text):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
        assert self.codes(build.Cuda("nvcc").architectures(["8.9"])) == ["sm_80", "sm_90a", "compute_90a"]

    @pytest.mark.parametrize("text", ["Hopper", "90", "9.0+SASS"])
    def test_an_unknown_architecture_is_an_error(self, build, bare, monkeypatch, text):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
        with pytest.raises(build.Missing, match=f"has '{text.replace('+', '.')}'"):
            build.Cuda("nvcc").architectures([])


class TestPlan:
    @pytest.mark.parametrize("name", ["cpu", "cuda"])
    def test_every_source_is_in_a_library(self, build, bare, name):
        for tool in ("g++", "nvcc"):
            executable(bare / tool, "echo sm_80")
        torch = build.Torch("2.13.0", ["/torch/include"], "/torch/lib", "/site", [])
        built = build.PLANNERS[name](torch).units
        there = {*(ROOT / f"csrc/{name}").rglob("*.c*"), *(ROOT / "csrc/bindings").glob(f"{name}_*.cpp")}
        assert {unit.source for unit in built} == there and built
        assert len({unit.name for unit in built}) == len(built)

    @pytest.mark.parametrize("machine, sets", [("x86_64", 4), ("aarch64", 1), ("arm64", 1), ("riscv64", 1)])
    def test_kernels_for_cpus_are_built_for_every_instruction_set(self, build, bare, monkeypatch, machine, sets):
        monkeypatch.setattr(build.platform, "machine", lambda: machine)
        executable(bare / "g++")
        built = build.cpu_plan(build.Torch("2.13.0", ["/torch/include"], "/torch/lib", "/site", [])).units
        kernels = [unit for unit in built if unit.source.parent.name == "kernels"]
        assert len(kernels) == sets * len({unit.source for unit in kernels})
        for unit in kernels:
            avx512 = "-mavx512f" in unit.command
            assert avx512 == any("RSF_ISA=avx512" in option for option in unit.command)
            assert ("-DRSF_ISA=neon" in unit.command) == (machine in ("aarch64", "arm64"))

    def test_a_cross_compiler_decides_the_instruction_sets(self, build, bare, monkeypatch):
        monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
        executable(bare / "g++", "echo aarch64-linux-gnu")
        assert build.instruction_sets() == build.NEON

    def test_ninja_gets_paths_with_spaces_and_dollars(self, build):
        plan = build.Plan([build.Unit("x.o", Path("/a b/x$1.cpp"), ["c++", "-DX='1'"])], ["c++"])
        text = build.ninja_file(plan, [Path("/o/x.o")], ["c++", "x"], Path("/o/l.so"))
        assert "build /o/x.o: compile0 /a$ b/x$$1.cpp" in text and "'/a b/x$$1.cpp'" in text

    @pytest.mark.parametrize("value", ["yes", "2"])
    def test_an_unknown_value_of_a_variable_is_an_error(self, build, bare, monkeypatch, value):
        monkeypatch.setenv("RESSHIFT_FAST_CPU", value)
        with pytest.raises(SystemExit, match="expected auto, 0 or 1"):
            build.plan_or_reason("cpu")

    def test_a_required_library_without_its_compiler_is_an_error(self, build, bare, monkeypatch):
        monkeypatch.setenv("RESSHIFT_FAST_CUDA", "1")
        executable(bare / "g++")
        with pytest.raises(SystemExit, match="RESSHIFT_FAST_CUDA=1, but nvcc"):
            build.plan_or_reason("cuda")

    def test_a_library_that_is_switched_off_is_not_planned(self, build, bare, monkeypatch):
        monkeypatch.setenv("RESSHIFT_FAST_CPU", "0")
        assert build.plan_or_reason("cpu") == "RESSHIFT_FAST_CPU=0 when it was installed"


def test_every_folder_with_python_is_installed(build):
    folders = {path.relative_to(ROOT).parent for path in (ROOT / "resshift_fast").rglob("*.py")}
    names = [".".join(folder.parts) for folder in folders]
    assert sorted(build.packages()) == sorted([*names, "resshift_fast.kernels"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Builds a wheel of a copy of the repository with environment variables; returns its path and stderr."""

    def build(**variables: str) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp("wheel")
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "native.json", "*.safetensors")
        for name in ("resshift_fast", "kernels", "csrc"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder / name)
        environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CUDA_HOME", "CUDA_PATH")} | variables
        command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return next((folder / "dist").glob("*.whl")), done.stderr

    return build


@pytest.mark.slow
def test_a_wheel_without_a_compiler_is_pure_and_says_why(wheel, tmp_path):
    file, printed = wheel(PATH=str(tmp_path))
    assert file.name.endswith("-py3-none-any.whl")
    lines = [line for line in printed.splitlines() if line.startswith("resshift_fast: built without the ")]
    assert len(lines) == 2 and all("no C++ compiler was found" in line or "nvcc" in line for line in lines)
    with zipfile.ZipFile(file) as archive:
        assert "no C++ compiler" in json.loads(archive.read("resshift_fast/native.json"))["cpu"]
        installed = {name for name in archive.namelist() if name.endswith(".py")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "resshift_fast").rglob("*.py")}
    assert installed == sources | {f"resshift_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="there is no C++ compiler")
def test_a_compiler_that_fails_leaves_a_working_wheel(wheel, tmp_path):
    broken = executable(tmp_path / "broken", "exit 1")
    file, printed = wheel(CXX=str(broken), RESSHIFT_FAST_CUDA="0")
    assert "built without the cpu library: it did not compile" in printed
    with zipfile.ZipFile(file) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        assert "did not compile" in json.loads(archive.read("resshift_fast/native.json"))["cpu"]
