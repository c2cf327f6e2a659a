"""Finds the packages, and builds the native libraries where that can be done; pyproject.toml says everything else.

    RESSHIFT_FAST_CPU=auto|0|1    the library for CPUs; auto builds it where there is a C++ compiler
    RESSHIFT_FAST_CUDA=auto|0|1   the library for NVIDIA GPUs; auto builds it where there is nvcc
    TORCH_CUDA_ARCH_LIST="8.0 9.0+PTX"   for which GPUs; by default the one that is here, else all in CUDA_ARCHITECTURES
    CUDA_HOME, CXX, MAX_JOBS      as everywhere

Both are built against the stable ABI of LibTorch 2.10, so that one wheel serves every later torch and every Python from
3.10 on. Where something is missing, the package is installed without the library: one line says what is missing, and
`resshift-fast doctor` says it again. 1 makes that an error.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
MINIMUM_TORCH = (2, 10)
STABLE_ABI = "0x020a000000000000"
CUDA_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
OPTIMIZED = ["-O3", "-DNDEBUG"]
LANGUAGE = ["-std=c++17"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]

# csrc/cpu/kernels is compiled for each of these, and the processor decides which is called. All arm64
# processors have NEON: there GCC's first scheduling pass begins so many loads at once that sums leave their registers.
# Clang ignores the option.
PORTABLE: dict[str, list[str]] = {"portable": []}
NEON: dict[str, list[str]] = {"neon": ["-fno-schedule-insns", "-Wno-ignored-optimization-argument"]}
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = PORTABLE | {"avx2": AVX2, "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
CPU_KERNELS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-Wno-maybe-uninitialized"]

# Asks the torch that is installed where pip runs; a build environment's own torch would be gigabytes.
PROBE = """
import json, os, torch
from torch.utils.cpp_extension import include_paths
cuda = torch.version.cuda is not None and torch.cuda.is_available()
capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())} if cuda else ()
print(json.dumps({
    "version": torch.__version__,
    "include": include_paths(),
    "lib": os.path.join(os.path.dirname(torch.__file__), "lib"),
    "site": os.path.dirname(os.path.dirname(torch.__file__)),
    "capabilities": sorted(f"{major}.{minor}" for major, minor in capabilities),
}))
"""


class Missing(Exception):
    """Why a library cannot be built."""


@dataclass
class Torch:
    """The installed torch: version, folders of headers and libraries, and the GPUs that it sees."""

    version: str
    include: list[str]
    lib: str
    site: str
    capabilities: list[str]

    @classmethod
    def find(cls) -> "Torch":
        """Ask the Python that runs the build, past the environment in which pip isolates it."""
        command = [sys.executable, "-I", "-c", PROBE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Missing("torch is not installed; pip install torch first")
        found = cls(**json.loads(done.stdout.splitlines()[-1]))
        if tuple(map(int, found.version.split(".")[:2])) < MINIMUM_TORCH:
            raise Missing(f"torch {found.version} is installed, at least {'.'.join(map(str, MINIMUM_TORCH))} is needed")
        return found


@dataclass
class Cuda:
    """An nvcc, and folders of libraries that it doesn't know of."""

    nvcc: str
    lib: list[str] = field(default_factory=list)

    @classmethod
    def find(cls, site: str) -> "Cuda":
        """Look in CUDA_HOME, on PATH, in /usr/local/cuda, and among the packages of PyPI."""
        for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
            if home and Path(home, "bin/nvcc").exists():
                return cls(str(Path(home, "bin/nvcc")))
        if nvcc := shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc"):
            return cls(nvcc)
        for nvcc in sorted(Path(site).glob("nvidia/*/bin/nvcc"), reverse=True):
            libraries = {str(file.parent) for file in nvcc.parents[1].glob("lib*/libcudart_static.a")}
            if libraries and Path(nvcc.parents[1], "include/cuda_runtime.h").exists():
                return cls(str(nvcc), sorted(libraries))
        raise Missing(
            "nvcc is neither in CUDA_HOME nor on PATH; install the CUDA toolkit, or pip install nvidia-cuda-nvcc "
            "nvidia-cuda-runtime nvidia-cuda-cccl"
        )

    def architectures(self, present: list[str]) -> list[str]:
        """-gencode options: of TORCH_CUDA_ARCH_LIST, else of the GPUs present, else all that this nvcc knows."""
        listed = re.split(r"[ ;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
        known = [name for name in present if float(name) >= float(CUDA_ARCHITECTURES[0])]
        if present and not known:
            raise Missing(f"the GPUs here are of compute capability {', '.join(present)}, at least 8.0 is needed")
        names = [name for name in listed if name] or known
        if not names:
            done = subprocess.run([self.nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
            names = [n for n in CUDA_ARCHITECTURES if f"sm_{n.replace('.', '')}" in done.stdout.split()]
            # Other GPUs compile it for themselves: later ones, and those of families that are left out.
            names[0] += "+PTX"
            names[-1] += "+PTX" if len(names) > 1 else ""
        options = []
        for name in names:
            number, _, ptx = name.partition("+")
            if not re.fullmatch(r"\d+\.\d[af]?", number) or ptx not in ("", "PTX"):
                raise Missing(f"TORCH_CUDA_ARCH_LIST has {name!r}, expected the like of '9.0' or '9.0+PTX'")
            code = number.replace(".", "")
            options += ["-gencode", f"arch=compute_{code},code=sm_{code}"]
            if ptx:
                options += ["-gencode", f"arch=compute_{code},code=compute_{code}"]
        return options


@dataclass
class Unit:
    """One object file: its name, its source, and the command that makes it, but for both."""

    name: str
    source: Path
    command: list[str]


@dataclass
class Plan:
    """How one library is built: its object files, and what links them."""

    units: list[Unit]
    linker: list[str]


def compiler() -> str:
    """The C++ compiler: CXX, else the first of the usual ones."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise Missing("no C++ compiler was found; install g++ or clang, or name one with CXX")


def instruction_sets() -> dict[str, list[str]]:
    """Those of the machine that the compiler compiles for, which is this one unless it is a cross compiler."""
    done = subprocess.run([compiler(), "-dumpmachine"], capture_output=True, text=True)
    machine = done.stdout.partition("-")[0].strip() or platform.machine()
    return {
        **dict.fromkeys(("x86_64", "AMD64", "amd64"), INSTRUCTION_SETS),
        **dict.fromkeys(("aarch64", "arm64"), NEON),
    }.get(machine, PORTABLE)


def units(pattern: str, command: list[str], suffix: str = "") -> list[Unit]:
    """One for each source that fits the pattern."""
    paths = sorted((ROOT / "csrc").glob(pattern))
    return [Unit(f"{path.parent.name}_{path.name}{suffix}.o", path, command) for path in paths]


def host_command(torch: Torch, *options: str) -> list[str]:
    includes = [option for folder in torch.include for option in ("-isystem", folder)]
    return [
        *(compiler(), *LANGUAGE, *OPTIMIZED, *WARNINGS, "-fPIC", "-fvisibility=hidden"),
        *(f"-DTORCH_TARGET_VERSION={STABLE_ABI}", *options, *includes),
    ]


def cpu_plan(torch: Torch) -> Plan:
    link = [compiler(), "-shared", f"-L{torch.lib}", "-ltorch_cpu"]
    found = units("bindings/cpu_*.cpp", host_command(torch)) + units("cpu/*.cpp", host_command(torch))
    for isa, options in instruction_sets().items():
        found += units("cpu/kernels/*.cpp", host_command(torch, *CPU_KERNELS, f"-DRSF_ISA={isa}", *options), f".{isa}")
    return Plan(found, link)


def cuda_plan(torch: Torch) -> Plan:
    cuda = Cuda.find(torch.site)
    nvcc = [
        *(cuda.nvcc, "-ccbin", compiler(), *LANGUAGE, *OPTIMIZED, "-Xcompiler", "-fPIC,-fvisibility=hidden"),
        *cuda.architectures(torch.capabilities),
    ]
    # CUDA's run time is linked into the library: whatever torch brings or lacks, none has to be found.
    libraries = [f"-L{torch.lib}", "-ltorch_cpu", *(f"-L{folder}" for folder in cuda.lib)]
    link = [cuda.nvcc, "-shared", "-ccbin", compiler(), "-cudart", "static", *libraries]
    return Plan(units("cuda/*.cu", nvcc) + units("bindings/cuda_*.cpp", host_command(torch, "-DUSE_CUDA")), link)


PLANNERS = {"cpu": cpu_plan, "cuda": cuda_plan}
PLANS: dict[str, Plan] = {}  # of the libraries that are built
REASONS: dict[str, str] = {}  # why the others are not


def plan_or_reason(name: str) -> Plan | str:
    """How to build a library, or why it is not built.

    Raises:
        SystemExit: where the environment demands the library, with the reason.
    """
    variable = f"RESSHIFT_FAST_{name.upper()}"
    wanted = os.environ.get(variable) or "auto"
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"{variable} is {wanted!r}, expected auto, 0 or 1")
    if wanted == "0":
        return f"{variable}=0 when it was installed"
    try:
        if sys.platform == "win32":
            raise Missing("Windows is not supported yet")
        return PLANNERS[name](Torch.find())
    except Missing as missing:
        if wanted == "1":
            raise SystemExit(f"{variable}=1, but {missing}") from None
        return str(missing)


class Record(build_py):
    """Writes down which libraries are not built and why, for `resshift-fast doctor`, and says it."""

    def run(self):
        super().run()
        write_record(ROOT if self.editable_mode else Path(self.build_lib))
        for name, reason in REASONS.items():
            print(f"resshift_fast: built without the {name} library: {reason}", file=sys.stderr)


def write_record(folder: Path) -> None:
    (folder / "resshift_fast").mkdir(parents=True, exist_ok=True)
    (folder / "resshift_fast/native.json").write_text(json.dumps(REASONS, indent=1) + "\n")


class BuildNative(build_ext):
    """Compiles the libraries, with ninja where there is one, and leaves out what does not compile."""

    def build_extension(self, ext):
        name = ext.name.rpartition("_")[2]
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            # Not in build_temp, which an editable installation throws away: what has not changed is not compiled again.
            make(PLANS[name], ROOT.resolve() / "build/native" / name, library)
        except (subprocess.CalledProcessError, OSError):
            if os.environ.get(f"RESSHIFT_FAST_{name.upper()}") == "1":
                raise
            library.unlink(missing_ok=True)
            REASONS[name] = "it did not compile; pip install -v shows why"
            write_record(ROOT if self.editable_mode else Path(self.build_lib))
            print(f"resshift_fast: built without the {name} library: {REASONS[name]}", file=sys.stderr)


def make(plan: Plan, folder: Path, library: Path) -> None:
    """Compile what is newer than its object, then link."""
    folder.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    objects = [folder / unit.name for unit in plan.units]
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    # Libraries come after the objects that need them.
    link = [plan.linker[0], *map(str, objects), *plan.linker[1:], "-o", str(library)]
    if ninja := find_ninja():
        (folder / "build.ninja").write_text(ninja_file(plan, objects, link, library))
        subprocess.run([ninja, "-C", str(folder), "-j", str(jobs)], check=True)
        return
    with ThreadPoolExecutor(jobs) as pool:
        commands = [compile_command(*pair) for pair in zip(plan.units, objects, strict=True)]
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    subprocess.run(link, check=True)


def compile_command(unit: Unit, target: Path) -> list[str]:
    return [*unit.command, "-c", str(unit.source), "-o", str(target)]


def find_ninja() -> str | None:
    """The ninja of the build environment, or one on PATH."""
    try:
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    except ImportError:
        return shutil.which("ninja")


def ninja_file(plan: Plan, objects: list[Path], link: list[str], library: Path) -> str:
    """One rule for each object, with the headers that it was found to include, and one that links."""

    def quoted(words: list[str]) -> str:
        return " ".join("'" + word.replace("'", "'\\''").replace("$", "$$") + "'" for word in words)

    def path(file: Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(file))

    lines = ["ninja_required_version = 1.5"]
    for i, (unit, target) in enumerate(zip(plan.units, objects, strict=True)):
        depfile = f"{target}.d"
        command = quoted([*compile_command(unit, target), "-MD", "-MF", depfile])
        lines += [f"rule compile{i}", f"  command = {command}", f"  depfile = {path(Path(depfile))}", "  deps = gcc"]
        lines += [f"  description = {unit.name}"]
        lines += [f"build {path(target)}: compile{i} {path(unit.source)}"]
    lines += ["rule link", f"  command = {quoted(link)}", f"  description = {library.name}"]
    lines += [f"build {path(library)}: link {' '.join(map(path, objects))}", f"default {path(library)}", ""]
    return "\n".join(lines)


def packages() -> list[str]:
    """All that is installed: every package below resshift_fast, and kernels as one of them."""
    return [*find_packages(str(ROOT), include=["resshift_fast", "resshift_fast.*"]), "resshift_fast.kernels"]


def main() -> None:
    """What setuptools runs."""
    # Asking for the metadata alone runs this file too, and needs no search for compilers.
    building = not {"build", "build_ext", "build_py", "bdist_wheel", "editable_wheel", "install"}.isdisjoint(sys.argv)
    for name in PLANNERS if building else ():
        plan = plan_or_reason(name)
        if isinstance(plan, Plan):
            PLANS[name] = plan
        else:
            REASONS[name] = plan
    setup(
        packages=packages(),
        ext_modules=[Extension(f"resshift_fast._{name}", [], py_limited_api=True, optional=True) for name in PLANS],
        cmdclass={"build_ext": BuildNative, "build_py": Record},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if PLANS else {},
    )


if __name__ == "__main__":
    # setuptools imports what installed packages add to it. That of one named kernels is not in the folder kernels here.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT.resolve()]
    main()
