"""Kernels compile for every architecture within their budgets, and every violation of a limit or budget is reported.

Kernels are compiled in separate processes, because the tests' process has Triton's interpreter instead of the compiler.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from resshift_fast.kernels import tuning
from resshift_fast.kernels.ahead import Job
from scripts.kernel_proof import addresses, coverage, machine_code, records
from scripts.kernel_proof.budgets import (
    Budgets,
    Exemption,
    beyond_budgets,
    beyond_limits,
    budget_file,
    differences,
)
from scripts.kernel_proof.compilation import Compiled
from scripts.kernel_proof.launch_cases import ALL, LAUNCH_CASES, SIXTEEN
from scripts.kernel_proof.report import settle

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BAD_KERNELS = Path(__file__).with_name("bad_kernels.py")
BUDGETS = Path(__file__).with_name("budgets")
FAST = (
    "group_norm.forward-960x16x16-bfloat16",
    "residual_shift.posterior_step-3x64x64-bfloat16",
    "window_attention_proj.forward-192x8x8-bfloat16",
)


def budgets_command(*options) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts/kernel_budgets.py", "--workers", "1", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, cwd=ROOT)


def test_kernels_are_within_their_budgets():
    """Three launch cases; `python scripts/kernel_budgets.py` checks all."""
    result = budgets_command("--arch", 90, "--only", *FAST)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> SimpleNamespace:
    """Result of an update of the budgets of the bad kernels."""
    file = tmp_path_factory.mktemp("budgets") / "bad.json"
    result = budgets_command("--launch-cases", BAD_KERNELS, "--budgets", file, "--arch", 86, "--update")
    return SimpleNamespace(result=result, file=file)


@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        ("short_address_kernel", "may overflow is part of an address: kernels/bad_kernels.py:"),
        ("narrow_kernel", "no access to global memory moves 128 bits"),
        ("spilling_kernel", "spill into local memory"),
        ("tf32_kernel", "rounds its inputs to tf32"),
        ("greedy_kernel", "bytes of shared memory are needed, a block has 101376"),
        ("broken_kernel", "CompilationError"),
    ],
)
def test_a_fault_is_reported(bad, kernel, text):
    assert bad.result.returncode == 1
    lines = [line for line in bad.result.stderr.splitlines() if line.startswith(f"{kernel}: ")]
    assert len(lines) == 1 and text in lines[0]


@pytest.mark.parametrize("kernel", ["sound_kernel", "ieee_kernel", "late_extension_kernel"])
def test_a_correct_or_exempted_kernel_is_not_reported(bad, kernel):
    assert f"+ {kernel}" in bad.result.stdout
    assert kernel not in bad.result.stderr


def test_an_update_writes_one_line_per_entry(bad):
    lines = bad.file.read_text().splitlines()
    entry = next(line for line in lines if "ieee_kernel" in line)
    assert entry.startswith('  "ieee_kernel bad_kernels.ieee-n-float16 sm_86": {"warps": 4, "stages": 2, "registers": ')
    assert '"matrix": "HMMA.16816.F32"}' in entry


def test_a_check_fails_where_a_budget_is_exceeded_or_missing(bad, tmp_path):
    content = json.loads(bad.file.read_text())
    budget = content["entries"]["sound_kernel bad_kernels.sound-n-float16 sm_86"]
    budget["registers"] -= 1
    del content["entries"]["ieee_kernel bad_kernels.ieee-n-float16 sm_86"]
    file = tmp_path / "budgets.json"
    file.write_text(json.dumps(content))
    options = ("--launch-cases", BAD_KERNELS, "--arch", 86, "--only", "sound", "ieee", "late")
    result = budgets_command(*options, "--budgets", file)
    assert result.returncode == 1
    exceeded, missing, total = result.stderr.splitlines()
    registers = budget["registers"]
    assert exceeded.startswith(
        f"sound_kernel: {registers + 1} registers where the budget is {registers} (bad_kernels.sound"
    )
    assert missing.startswith("ieee_kernel: has no entry in the budget file")
    assert "python scripts/kernel_budgets.py --update" in result.stdout
    assert total == "FAILED: 2 findings"


def test_with_another_triton_only_limits_are_checked(bad, tmp_path):
    file = tmp_path / "budgets.json"
    Budgets({"triton": "0.0", "fp_fusion": True}).save(file)
    options = ("--launch-cases", BAD_KERNELS, "--arch", 86, "--budgets", file)
    result = budgets_command(*options, "--only", "sound", "short")
    assert "resources are not compared" in result.stdout
    assert result.returncode == 1 and "short_address_kernel" in result.stderr and "sound_kernel" not in result.stderr


@pytest.fixture
def recorded(bad, tmp_path) -> Path:
    """A copy of the bad kernels' budget file and of its records, which a test may change."""
    for file in (bad.file, records.file_of(bad.file)):
        shutil.copy(file, tmp_path)
    return tmp_path / bad.file.name


def seed_for(file: Path, kernel: str = "") -> str:
    """A seed that samples the records with this kernel's resources and no others; without a kernel, none at all."""
    budgets = Budgets.load(file)
    found = records.load(records.file_of(file), budgets.compiler)
    entries = [entry for name, entry in budgets.entries.items() if name.split()[0] == kernel]
    codes = {key: asdict(record.compiled.code) for key, record in found.items()}
    ours = {key for key, code in codes.items() if any(code.items() <= x.items() for x in entries)}
    seeds = ((str(i), {key for key in found if records.is_sampled(key, str(i))}) for i in range(10**6))
    return next(text for text, sample in seeds if sample == ours)


def test_an_unchanged_kernel_is_not_compiled_again(bad, recorded):
    options = ("--launch-cases", BAD_KERNELS, "--budgets", recorded, "--arch", 86)
    result = budgets_command(*options, "--known", seed_for(recorded))
    # Kernels that did not compile have no record, so they are compiled again; recorded findings are reported again.
    known, compiled, *_ = result.stdout.splitlines()
    unchanged, total = map(int, re.fullmatch(r"(\d+) of (\d+) kernels are unchanged; 0 of them .*", known).groups())
    assert unchanged > 5 and compiled.startswith(f"{total - unchanged}/{total - unchanged} kernels compiled")
    assert result.returncode == 1 and result.stderr.splitlines() == bad.result.stderr.splitlines()


def test_a_changed_kernel_is_compiled(recorded):
    result = known_of(recorded, "sound", "BLOCK + tl.arange", "BLOCK + 1 + tl.arange")
    assert re.match(r"0 of (\d+) kernels are unchanged; 0 of them .*\n\1/\1 kernels compiled", result.stdout)


def known_of(recorded, kernels, text, other):
    """The command's result with --known for kernels in whose source `other` stands for `text` once."""
    changed = recorded.with_name(BAD_KERNELS.name)
    changed.write_text(BAD_KERNELS.read_text().replace(text, other, 1))
    options = ("--launch-cases", changed, "--budgets", recorded, "--arch", 86, "--only", kernels)
    return budgets_command(*options, "--known", seed_for(recorded))


@pytest.mark.parametrize(
    ("text", "other"),
    [("BLOCK + tl.arange", "BLOCK + 0 * n + tl.arange"), ("import ", "\nimport ")],
    ids=["terms", "lines"],
)
def test_a_kernel_that_means_the_same_is_not_compiled_again(recorded, text, other):
    result = known_of(recorded, "sound", text, other)
    assert result.returncode == 0, result.stderr
    assert re.match(r"(\d+) of \1 kernels are unchanged; 0 of them are compiled anyway\n(?!.*compiled)", result.stdout)


def test_a_kernel_with_findings_is_compiled_again_if_it_moves(recorded):
    """They name lines of its source."""
    result = known_of(recorded, "short_address", "import ", "\nimport ")
    assert re.match(r"0 of (\d+) kernels are unchanged; 0 of them .*\n\1/\1 kernels compiled", result.stdout)
    assert result.returncode == 1 and "short_address_kernel: " in result.stderr


def test_a_wrong_record_is_found_when_it_is_sampled(recorded):
    file, seed = records.file_of(recorded), seed_for(recorded, "sound_kernel")
    file.write_text(re.sub(r'"registers": \d+', '"registers": 7', file.read_text()))
    options = ("--launch-cases", BAD_KERNELS, "--budgets", recorded, "--arch", 86, "--only", "sound")
    result = budgets_command(*options, "--known", seed)
    assert result.returncode == 1
    assert "sound_kernel: compiled code differs from the record for the same source" in result.stderr


def test_records_of_another_compiler_or_of_another_architecture(tmp_path):
    file, code = tmp_path / "x.compiled", machine_code.MachineCode(40, 8, 1024, 2, 1, "none")
    found, failed = Compiled(code, [("address", "line 7")]), Compiled(None, [("compiler", "CompilationError")])
    expected = {"sm_90 1": records.Record(found, "a"), "sm_86 1": records.Record(Compiled(code), "b")}
    records.save(file, COMPILER, {**expected, "sm_86 2": records.Record(failed, "")})
    assert records.load(file, COMPILER) == expected
    assert records.but_of(expected, [86]) == {"sm_90 1": expected["sm_90 1"]}
    assert records.load(file, {**COMPILER, "triton": "3.9.1"}) == {} == records.load(tmp_path / "none", COMPILER)


ENTRY = {"warps": 4, "stages": 2, "registers": 40, "spill": 0, "shared": 1024, "loads_128": 2, "stores_128": 1}
ENTRY["matrix"] = "HMMA.16816.F32"
COMPILER = {"triton": "3.9.0", "fp_fusion": True}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, None),
        ({"registers": 39, "shared": 0, "loads_128": 1}, None),
        ({"registers": 41}, "41 registers where the budget is 40"),
        ({"spill": 8}, "8 bytes of spills where the budget is 0"),
        ({"shared": 2048}, "2048 bytes of shared memory where the budget is 1024"),
        ({"loads_128": 0}, "no 128-bit loads any more, where 2 are expected"),
        ({"stores_128": 0}, "no 128-bit stores any more, where 1 are expected"),
        ({"matrix": "none"}, "none as matrix instruction instead of HMMA.16816.F32"),
        ({"warps": 8}, "8 warps instead of 4"),
    ],
)
def test_an_entry_is_compared_with_its_budget(change, text):
    old, new = (Budgets(COMPILER, {"k s sm_90": entry}) for entry in (ENTRY, {**ENTRY, **change}))
    findings = beyond_budgets(old, new, whole=True)
    assert [name for name, _ in findings if name] == ["k s sm_90"] * (text is not None)
    assert text is None or findings[0][1] == text


def test_a_stale_entry_is_reported_if_everything_was_compiled():
    new = Budgets(COMPILER, {"k s sm_90": ENTRY})
    old = Budgets(COMPILER, {**new.entries, "gone s sm_90": ENTRY, "not-compiled s sm_80": ENTRY})
    assert not beyond_budgets(old, new, whole=False)
    assert beyond_budgets(old, new, whole=True) == [("gone s sm_90", "nothing compiles to this entry any more")]


def test_an_architecture_without_entries_has_no_budgets():
    old, new = (Budgets(COMPILER, dict.fromkeys(names, ENTRY)) for names in (["k s sm_90"], ["k s sm_80"]))
    assert not beyond_budgets(old, new, whole=True)


def test_an_update_of_one_architecture_keeps_the_others(tmp_path):
    file, larger = tmp_path / "budgets.json", {**ENTRY, "registers": 41}
    Budgets(COMPILER, {"k s sm_80": ENTRY, "k s sm_90": ENTRY, "gone s sm_90": ENTRY}).save(file)
    new = Budgets(COMPILER, {"k s sm_90": larger})
    assert settle(file, new, [], whole=True, update=True, command="") == 0
    assert Budgets.load(file).entries == {"k s sm_80": ENTRY, "k s sm_90": larger}
    other = Budgets({**COMPILER, "triton": "3.9.1"}, {"k s sm_90": ENTRY})
    assert settle(file, other, [], whole=True, update=True, command="") == 2
    assert Budgets.load(file).entries == {"k s sm_80": ENTRY, "k s sm_90": larger}


@pytest.mark.parametrize(
    "version, update, expected", [("3.6.1", False, "3.6"), ("3.7.0", False, "3.10"), ("3.7.0+git", True, "3.7")]
)
def test_each_minor_version_has_a_file_of_its_own(version, update, expected, tmp_path):
    for minor in ("3.6", "3.10", "3.9"):
        (tmp_path / f"triton-{minor}.json").touch()
    assert budget_file(tmp_path, version, update).name == f"triton-{expected}.json"


@pytest.mark.parametrize("version, architectures", [("3.6", {90}), ("3.9", set(tuning.ARCHITECTURES))])
def test_every_launch_case_has_budgets(version, architectures):
    entries = Budgets.load(BUDGETS / f"triton-{version}.json").entries
    calls = [(case, arch) for case in LAUNCH_CASES for arch in architectures]
    started = {f"{x.name} {call.name} sm_{arch}" for call, arch in calls for x in coverage.recorded(call, arch)}
    assert {re.sub(r"#\d+ ", " ", name) for name in entries} == started


def test_an_update_lists_its_changes():
    old, new = {"a": ENTRY, "b": ENTRY, "c": ENTRY}, {"b": {**ENTRY, "registers": 41}, "c": ENTRY, "d": ENTRY}
    removed, changed, added = differences(old, new)
    assert removed.startswith("- a: ") and changed == "~ b: registers 40 → 41" and added.startswith("+ d: ")


def test_an_exemption_covers_its_own_finding_and_is_reported_if_unused():
    job = Job("m", "k", (), (), (), 4, 2, 90)
    code = machine_code.MachineCode(40, 8, 1024, 2, 1, "none")
    spill, other = Exemption("k *", "spill", "why"), Exemption("other *", "spill", "why")
    compiled = {job: Compiled(code, [("address", "line 7"), ("address", "line 8")])}
    address = Exemption("k *", "address", "why", text="line 7")
    findings = beyond_limits({"k s sm_90": job}, compiled, (spill, other, address), whole=True)
    assert findings == [("k s sm_90", "line 8"), ("other *", "does not need its exemption from 'spill' any more")]


@pytest.mark.parametrize("arch", [80, 90])
def test_every_kernel_has_launch_cases_in_every_dtype(arch):
    started: dict[tuple[str, str], set[torch.dtype]] = {}
    for case in LAUNCH_CASES:
        for each in coverage.recorded(case, arch):
            file = Path(each.kernel.fn.__code__.co_filename)
            started.setdefault((file.name, each.name), set()).add(case.dtype)
    expected = coverage.started_kernels(ROOT / "kernels")
    in_blocks = ("conv2d_kernel", "conv2d_sum_kernel", "concat_group_norm_kernel")  # which have kernels in 16 bit
    dtypes = {kernel: set(SIXTEEN if kernel[1] in in_blocks else ALL) for kernel in expected}
    assert {kernel for kernel in expected if started.get(kernel) != dtypes[kernel]} == set()


def test_kernels_are_distinguished_from_the_functions_that_they_call(tmp_path):
    tmp_path.joinpath("tiles.py").write_text(
        "@triton.jit\ndef helper(x): return x\n\n@triton.jit\ndef third(p_x): return helper(p_x)\n"
    )
    tmp_path.joinpath("operator.py").write_text(
        "import tiles\nfrom tiles import helper\n\n"
        "@triton.jit(do_not_specialize=['n'])\ndef first(p_x): return helper(p_x)\n\n"
        "@triton.jit\ndef second(p_x): return helper(p_x)\n\n"
        "def forward(x): _start(first if x.ndim else second), _start(tiles.third)\n"
    )
    kernels = {("operator.py", "first"), ("operator.py", "second"), ("tiles.py", "third")}
    assert coverage.started_kernels(tmp_path) == kernels


FUNCTION = """
#loc1 = loc("kernel.py":3:1)
#loc2 = loc("kernel.py":7:1)
#loc3 = loc(callsite(#loc2 at #loc1))
module {{
  tt.func public @kernel(%p: !tt.ptr<f32> {{tt.divisibility = 16 : i32}} loc("p"(#loc1)), %n: i32, %m: i32) {{
    %x = tt.get_program_id x : i32 loc(#loc1)
    %y = tt.get_program_id y : i32 loc(#loc1)
    %c0 = arith.constant 0 : i32 loc(#loc1)
    %c1 = arith.constant 1 : i32 loc(#loc1)
    %c6 = arith.constant 6 : i32 loc(#loc1)
    %c4096 = arith.constant 4096 : i32 loc(#loc1)
    {body}
    %a = tt.addptr %p, %o : !tt.ptr<f32>, i32 loc(#loc1)
    tt.return loc(#loc1)
  }} loc(#loc1)
}} loc(#loc1)
"""


ADDRESSES = {
    "program": ("%o = arith.addi %x, %c6 : i32 loc(#loc3)", False),
    "product": ("%o = arith.muli %x, %c4096 : i32 loc(#loc3)", True),
    "shift": ("%o = arith.shli %x, %c6 : i32 loc(#loc3)", True),
    "sizes": ("%o = arith.muli %n, %m : i32 loc(#loc3)", True),
    "second axis": ("%o = arith.muli %y, %c4096 : i32 loc(#loc3)", False),
    "remainder": ("%r = arith.remsi %x, %c6 : i32\n%o = arith.muli %r, %c4096 : i32 loc(#loc3)", False),
    "quotient": ("%q = arith.divsi %x, %c4096 : i32\n%o = arith.muli %q, %c4096 : i32 loc(#loc3)", False),
    "undone too late": ("%q = arith.muli %x, %c4096 : i32 loc(#loc3)\n%o = arith.remsi %q, %c6 : i32", True),
    "extended": (
        "%e = arith.extsi %x : i32 to i64\n%f = arith.extsi %n : i32 to i64\n%o = arith.muli %e, %f : i64",
        False,
    ),
    "extended late": ("%e = arith.muli %x, %c6 : i32 loc(#loc3)\n%o = arith.extsi %e : i32 to i64", True),
    "loop": ("scf.for %i = %c0 to %c6 step %c1  : i32 {\n%o = arith.muli %i, %c4096 : i32 loc(#loc3)\n}", False),
    "long loop": ("scf.for %i = %c0 to %n step %c1  : i32 {\n%o = arith.muli %i, %c6 : i32 loc(#loc3)\n}", True),
    "carried": (
        "%o = scf.for %i = %c0 to %c6 step %c1 iter_args(%s = %c0) -> (i32)  : i32 {\n"
        "%t = arith.addi %s, %c1 : i32\nscf.yield %t : i32\n}",
        False,
    ),
    "carried product": (
        "%r:2 = scf.for %i = %c0 to %c6 step %c1 iter_args(%s = %c1, %u = %c0) -> (i32, i32)  : i32 {\n"
        "%t = arith.muli %s, %c4096 : i32 loc(#loc3)\nscf.yield %t, %t : i32, i32\n}\n"
        "%o = arith.addi %r#1, %c1 : i32",
        True,
    ),
    "branch": (
        "%c = arith.cmpi slt, %x, %n : i32\n%o = scf.if %c -> (i32) {\nscf.yield %c6 : i32\n} else {\n"
        "%t = arith.muli %x, %c6 : i32 loc(#loc3)\nscf.yield %t : i32\n}",
        True,
    ),
    "sum": (
        "%v = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32>\n"
        '%b = "tt.reduce"(%v) <{axis = 0 : i32}> ({\n^bb0(%d: i32, %e: i32):\n'
        "%h = arith.addi %d, %e : i32\ntt.reduce.return %h : i32\n}) : (tensor<64xi32>) -> i32\n"
        "%o = arith.muli %b, %c4096 : i32 loc(#loc3)",
        True,
    ),
    "choice": (
        "%v = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32>\n"
        '%b:2 = "tt.reduce"(%w, %v) <{axis = 0 : i32}> ({\n^bb0(%d: f32, %e: i32, %f: f32, %g: i32):\n'
        "%h = arith.cmpf olt, %d, %f : f32\n%j = arith.select %h, %e, %g : i32\n"
        "tt.reduce.return %d, %j : f32, i32\n}) : (tensor<64xf32>, tensor<64xi32>) -> (f32, i32)\n"
        "%o = arith.muli %b#1, %c4096 : i32 loc(#loc3)",
        False,
    ),
    "loaded": ("%l = tt.load %p : !tt.ptr<i32>\n%o = arith.muli %l, %c4096 : i32 loc(#loc3)", True),
}


@pytest.mark.parametrize(("body", "wraps"), ADDRESSES.values(), ids=ADDRESSES)
def test_addresses_that_may_wrap_are_found(body, wraps):
    found = addresses.wrapping_addresses(FUNCTION.format(body=body))
    assert [text.split("address: ")[1] for text in found] == ["kernel.py:7 ``"] * wraps


LISTING = """
  REG:96 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:408
        /*0000*/                   MOV R1, c[0x0][0x28] ;          /* 0x00000a0000017a02 */
                                                                   /* 0x000fe40000000f00 */
        /*0010*/              @P0  LDG.E.128 R4, [R2.64] ;
        /*0020*/             @!UP1 LDG.E.64.LTC128B R4, [R2.64] ;
        /*0030*/                   LDGSTS.E.BYPASS.128 [R2], [R4.64] ;
        /*0040*/                   HMMA.16816.F32.BF16 R4, R2, R6, R4 ;
        /*0050*/                   STG.E.64 [R2.64], R4 ;
        /*1060*/                   UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR15], tmem[UR10], idesc[UR11], UPT ;
        /*1070*/                   UTMASTG.2D [UR8], [UR4] ;
"""


def test_a_disassembly_is_parsed():
    code = machine_code.MachineCode.parse(LISTING, shared=512)
    assert code == machine_code.MachineCode(96, 24, 512, 2, 1, "HMMA.16816.F32.BF16 UTCHMMA")


def test_a_16_bit_dot_without_matrix_instruction_is_reported():
    ttir = "    %d = tt.dot %a, %b, %c : tensor<16x16xbf16> * tensor<16x16xbf16> -> tensor<16x16xf32> loc(#loc1)"
    code = machine_code.MachineCode(40, 0, 0, 1, 1, "none")
    assert machine_code.unserved_dots(ttir, code) == ["no matrix instruction serves the bf16 dots"]
    assert not machine_code.unserved_dots(ttir.replace("bf16", "f32"), code)
