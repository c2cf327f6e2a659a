"""The CPU library never executes an instruction that the processor lacks, whatever the linker keeps."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cpu_build
import emulation
import pytest
import torch

from resshift_fast.backends import native, unavailable

ROOT = Path(__file__).parents[2]
REQUIRED = os.environ.get("RESSHIFT_FAST_REQUIRE_COMPILER") == "1"
ISAS = ("portable", "avx2", "avx512", "avx512_bf16")

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 has several instruction sets"),
    pytest.mark.skipif(emulation.SANITIZED or cpu_build.KIND is not None, reason="checks the installed library"),
]


def skip_or_fail(reason: str) -> None:
    """Skip the test, or fail where tools are required."""
    (pytest.fail if REQUIRED else pytest.skip)(reason)


@pytest.fixture(scope="module")
def binutils():
    if not (shutil.which("objdump") and shutil.which("nm")):
        skip_or_fail("objdump and nm are not on PATH; install binutils")


@pytest.fixture(scope="module")
def compiler():
    try:
        return cpu_build.setup_module().compiler()
    except cpu_build.setup_module().Missing as missing:
        skip_or_fail(str(missing))


@pytest.fixture(scope="module")
def library():
    """Path of the installed library."""
    if reason := unavailable("cpu"):
        skip_or_fail(f"the library for CPUs {reason}")
    return native.path("cpu")


@pytest.fixture
def unlimited(library):
    """The library's operators; afterwards the limit of the instruction set is lifted."""
    yield torch.ops.resshift_fast_cpu
    torch.ops.resshift_fast_cpu.limit_isa(3)


def weak_symbols(path) -> list[str]:
    """Symbols of which a linker keeps one copy, except those in a namespace of an instruction set."""
    listed = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^[0-9a-f]* [WwVvu] (.+)$", listed, re.MULTILINE)
    return [name for name in found if not re.search(r"\b(avx2|avx512|avx512_bf16)::", name)]


def is_current(target: Path) -> bool:
    """Whether an object of the installation is newer than all kernels and headers."""
    sources = [path for folder in ("common", "cpu") for path in (ROOT / "csrc" / folder).rglob("*.*")]
    return target.is_file() and target.stat().st_mtime > max(path.stat().st_mtime for path in sources)


@pytest.mark.slow
def test_no_file_of_kernels_shares_a_function_with_others(compiler, binutils, tmp_path):
    """If the linker keeps the AVX-512 copy of a weak function, every processor executes it."""
    setup = cpu_build.setup_module()
    units = [unit for unit in cpu_build.plan().units if unit.name.endswith(".avx512_bf16.o")]

    def compiled(unit):
        target = ROOT / "build/native/cpu" / unit.name  # of an editable installation
        if not is_current(target):
            target = tmp_path / unit.name
            done = subprocess.run([*setup.compile_command(unit, target), "-O1"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return {unit.source.name: weak_symbols(target)}

    with ThreadPoolExecutor(2) as pool:
        shared = {name: symbols for found in pool.map(compiled, units) for name, symbols in found.items()}
    assert shared and not any(shared.values()), shared


def test_a_shared_function_is_found(compiler, binutils, tmp_path):
    source = tmp_path / "shared.cpp"
    source.write_text(
        "#define NOINLINE __attribute__((noinline))\n"
        "namespace shared { template <class T> NOINLINE T twice(T x) { return x + x; } }\n"
        "namespace avx512 { template <class T> NOINLINE T half(T x) { return x / 2; }\n"
        "float f(float x) { return shared::twice(half(x)); } }\n"
    )
    subprocess.run([compiler, "-O1", "-c", source, "-o", tmp_path / "shared.o"], check=True)
    assert weak_symbols(tmp_path / "shared.o") == ["float shared::twice<float>(float)"]


# Instructions newer than each set. Those of AVX and later begin with v, as do the old verr and verw.
NEWER = {
    "portable": r"\tv(?!err\b|erw\b)",
    "avx2": r"%(zmm|[xy]mm(1[6-9]|2\d|3[01])\b|k[0-7]\b)",
    "avx512": r"\tv(cvtne2?ps2bf16|dpbf16ps)",
    "avx512_bf16": r"(?!)",
}


def set_of(function: str) -> str:
    """The instruction set that a function is compiled for, by the namespace that its name has."""
    return next((isa for isa in reversed(ISAS) if f"{isa}::" in function), "portable")


def functions(assembly: str):
    """(name, instructions) of every function in objdump's output."""
    pieces = re.split(r"^[0-9a-f]{8,} <(.+)>:$", assembly, flags=re.MULTILINE)
    return zip(pieces[1::2], pieces[2::2], strict=True)


def disassembled(library) -> str:
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_every_function_keeps_to_its_instruction_set(binutils, library):
    """Bindings, code of the standard library and portable kernels must run on every processor."""
    counts = dict.fromkeys(ISAS, 0)
    wrong = []
    for name, instructions in functions(disassembled(library)):
        isa = set_of(name)
        counts[isa] += 1
        if found := re.search(NEWER[isa] + ".*", instructions):
            wrong.append(f"{name}: {found[0].strip()}")
    assert all(count > 20 for count in counts.values()), f"the library has no symbols: {counts}"
    assert not wrong, "\n".join(wrong[:10])


@pytest.mark.parametrize(
    "isa, flags, expected",
    [("portable", "-mavx2", "v"), ("avx2", "-mavx512f", "%zmm"), ("avx512", "-mavx512bf16", "bf16")],
)
def test_a_newer_instruction_is_found(compiler, binutils, isa, flags, expected, tmp_path):
    source = tmp_path / "newer.cpp"
    source.write_text(
        "#include <immintrin.h>\n"
        "#if defined(__AVX512BF16__)\n"
        "__m256bh f(__m512 x) { return _mm512_cvtneps_pbh(x); }\n"
        "#elif defined(__AVX512F__)\n"
        "__m512 f(__m512 x) { return x + x; }\n"
        "#else\n"
        "float f(float x) { return x + x; }\n"
        "#endif\n"
    )
    subprocess.run([compiler, "-O2", flags, "-c", source, "-o", tmp_path / "newer.o"], check=True)
    ((_, instructions),) = functions(disassembled(tmp_path / "newer.o"))
    assert expected in re.search(NEWER[isa] + ".*", instructions)[0]


def test_a_limit_is_applied_and_an_unknown_one_refused(unlimited):
    best = unlimited.limit_isa(3)
    assert best == unlimited.isa()
    for limit in range(4):
        assert unlimited.limit_isa(limit) == unlimited.isa() == min(limit, best)
    for limit in (-1, 5):
        with pytest.raises(RuntimeError, match="the limit must be 0"):
            unlimited.limit_isa(limit)
    assert unlimited.isa() == best


def child(script: str, **variables: str):
    """Run Python code with the installed library loaded as `cpu`, in a process of its own."""
    start = "import torch\nfrom resshift_fast.backends import native\nassert native.missing('cpu') is None\n"
    start += "cpu = torch.ops.resshift_fast_cpu\n"
    # The path of this process, so that an uninstalled checkout is found too.
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment = {name: value for name, value in environment.items() if value}
    return subprocess.run([sys.executable, "-c", start + script], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_an_unknown_name_in_the_environment_sets_no_limit(unlimited):
    done = child("print(cpu.isa())", RESSHIFT_FAST_CPU_ISA="avx1024")
    assert done.stdout == f"{unlimited.limit_isa(3)}\n", done.stderr


# Overwrites every function of a newer instruction set with traps, then runs every operator on its examples.
TRAPPED = """
import ctypes, re, subprocess
from resshift_fast.backends import verification
from resshift_fast.backends import OPERATORS, unavailable
import resshift_fast.ops

assert unavailable("cpu") is None
library, page = str(native.path("cpu").resolve()), 4096
with open("/proc/self/maps") as maps:
    base = min(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(library))
listed = subprocess.run(["nm", "-CS", "--defined-only", library], capture_output=True, text=True, check=True).stdout
libc = ctypes.CDLL(None)
trapped = 0
for address, size, name in re.findall(r"^([0-9a-f]+) ([0-9a-f]+) [tTwW] (.+)$", listed, re.MULTILINE):
    if any(isa + "::" in name for isa in NEWER):
        begin, end = base + int(address, 16), base + int(address, 16) + int(size, 16)
        first = begin // page * page
        assert libc.mprotect(ctypes.c_void_p(first), ctypes.c_size_t(end - first), 7) == 0
        ctypes.memset(begin, 0xCC, end - begin)
        trapped += 1
assert trapped > 20
print("trapped", cpu.isa(), flush=True)
for operator in OPERATORS.values():
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if "cpu" in operator.loaders else ():
        verdict = verification.compare(operator, "cpu", torch.device("cpu"), dtype)
        assert verdict == verification.PASSED, f"{operator.name} {dtype}: {verdict}"
print("ran")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the library by /proc/self/maps")
@pytest.mark.parametrize("limit, name", list(enumerate(ISAS[:3])), ids=ISAS[:3])
def test_nothing_newer_than_the_limit_is_reached(binutils, unlimited, limit, name):
    """Simulates a processor that traps at an unknown instruction."""
    if limit > unlimited.limit_isa(3):
        pytest.skip("this processor does not have it")
    script = f"NEWER = {ISAS[limit + 1 :]}\n{TRAPPED}"
    done = child(script, RESSHIFT_FAST_CPU_ISA=name)
    assert done.stdout == f"trapped {limit}\nran\n", done.stderr
    if limit < unlimited.limit_isa(3):
        assert child(script, RESSHIFT_FAST_CPU_ISA=ISAS[limit + 1]).returncode == -signal.SIGTRAP
