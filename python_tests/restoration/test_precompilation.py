"""Compilation before a restoration's first call: which kernels, when, and the records of it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import SPECS, fresh

from resshift_fast import backends
from resshift_fast.backends import dispatch
from resshift_fast.restoration import precompilation
from resshift_fast.restoration.precompilation import Case

pytest.importorskip("triton")
from resshift_fast.kernels import ahead

SPEC = SPECS["x4"]
GPU = torch.device("cuda", 0)
SAMPLING = ("prior_sample", "posterior_step")


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch) -> Path:
    """Empty caches, and kernels that are compiled, not interpreted; returns Triton's cache folder."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(precompilation, "_prepared", set())
    return tmp_path / "triton"


@pytest.fixture
def compiler(machine, monkeypatch) -> list[list[Case]]:
    """A stand-in for the compiling processes: records the cases of each request and writes two files per case."""
    requested = []

    def compile_jobs(source, cases, *, workers, advance):
        requested.append(list(cases))
        jobs = {i: [f"{case.title}-{k}" for k in "ab"] for i, case in enumerate(cases)}
        outcomes = {job: ahead.Outcome(job, f"{job}.json", True) for of in jobs.values() for job in of}
        for done, outcome in enumerate(outcomes.values(), start=1):
            (machine / outcome.file).parent.mkdir(parents=True, exist_ok=True)
            (machine / outcome.file).touch()
            if advance is not None:
                advance(done, len(outcomes))
        return outcomes, jobs

    monkeypatch.setattr(ahead, "compile_jobs", compile_jobs)
    return requested


@pytest.fixture
def gpu(monkeypatch) -> None:
    """Treat every device as an H100."""
    monkeypatch.setattr(precompilation, "target", lambda device: (GPU, 90))


def prepare(*shapes, progress=False) -> None:
    precompilation.prepare_restoration(SPEC, GPU, torch.float32, shapes, progress)


def forget_prepared() -> None:
    """Start as a new process does, with nothing prepared."""
    precompilation._prepared.clear()


def limited(case: Case, *operators: str) -> Case:
    """The case with kernels for these operators only."""
    orders = tuple(((name, dtype), order if name in operators else ()) for (name, dtype), order in case.orders)
    return replace(case, orders=orders)


def test_a_pipeline_compiles_once_for_each_shape_of_batch(compiler, gpu):
    pipeline = fresh("x4")
    assert [case.spec for cases in compiler for case in cases] == [None]  # verification
    pictures = [np.zeros((20, 24, 3), np.uint8)] * 3
    plain = pipeline(pictures, batch_size=2)
    side = SPEC.plan_tiles(20, 24)
    shapes = {case.shape for case in compiler[1]}
    assert shapes == {(side[0].tile, side[1].tile, 2), (side[0].tile, side[1].tile, 1)}
    assert all((case.arch, case.dtype, case.spec) == (90, torch.float32, SPEC) for case in compiler[1])
    for ours, theirs in zip(pipeline(pictures, batch_size=2), plain, strict=True):
        assert np.array_equal(ours, theirs)
    assert len(compiler) == 2


def test_a_pipeline_that_tunes_compiles_all_candidates(compiler, gpu, monkeypatch):
    pipeline, picture = fresh("x4"), np.zeros((20, 24, 3), np.uint8)
    wants = lambda: [case.candidates for case in compiler[-1]]  # noqa: E731
    pipeline(picture, progress=False)
    assert wants() == [False]
    with backends.measuring():
        pipeline(picture, progress=False)
    assert wants() == [True]
    forget_prepared()
    compiler.clear()
    pipeline._tunes = True
    pipeline(picture[:16], progress=False)
    assert wants() == [True]


@pytest.mark.slow
def test_candidates_include_the_kernels_that_are_used(machine):
    used, timed, both = _in_a_compiling_process(
        """
from dataclasses import replace
case = precompilation.restoration_case(SPECS["x4"], torch.float32, (16, 16, 1), GPU, 90)
sampling = ("prior_sample", "posterior_step")
case = replace(case, orders=tuple((key, ("triton",)) for key, _ in case.orders if key[0] in sampling))
used, timed = (set(precompilation.emit_jobs(lambda job: None, [replace(case, candidates=c)])[0]) for c in (False, True))
print(json.dumps([len(used), len(timed), len(used & timed)]))
"""
    )
    assert used == both > 0 and timed > 2 * used


def test_a_warm_cache_needs_no_process(compiler, gpu):
    prepare((16, 16, 1))
    forget_prepared()
    prepare((16, 16, 1))
    assert len(compiler) == 1
    prepare((16, 16, 1), (16, 32, 1))
    assert [case.shape for case in compiler[1]] == [(16, 32, 1)]


def test_a_cleared_cache_is_noticed(compiler, gpu, machine):
    prepare((16, 16, 1))
    next(machine.glob("*.json")).unlink()
    forget_prepared()
    prepare((16, 16, 1))
    assert len(compiler) == 2


@pytest.mark.parametrize("name", ["TRITON_F32_DEFAULT", "TRITON_PTXAS_PATH"])
def test_other_options_of_the_compiler_are_another_case(compiler, gpu, monkeypatch, name):
    prepare((16, 16, 1))
    forget_prepared()
    monkeypatch.setenv(name, "0")
    prepare((16, 16, 1))
    assert len(compiler) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 0}', '{"format": 1, "files": 3}'])
def test_a_damaged_record_counts_as_none(compiler, gpu, machine, text):
    prepare((16, 16, 1))
    next((machine / "resshift_fast").iterdir()).write_text(text)
    assert precompilation.records() == []
    forget_prepared()
    prepare((16, 16, 1))
    assert len(compiler) == 2 and len(precompilation.records()) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("RESSHIFT_FAST_PRECOMPILE", "0"), ("TRITON_INTERPRET", "1")], ids=["off", "interpreted"]
)
def test_it_can_be_turned_off(compiler, gpu, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    prepare((16, 16, 1))
    precompilation.prepare_verification(GPU, torch.float32)
    assert compiler == []


def test_nothing_happens_on_a_cpu(compiler):
    fresh("x4")(np.zeros((20, 24, 3), np.uint8))
    assert compiler == []


def test_nothing_is_compiled_for_backends_that_are_not_tried(compiler, gpu, monkeypatch):
    monkeypatch.setattr(dispatch, "_preferred", "reference")
    prepare((16, 16, 1))
    assert compiler == []


def test_a_verified_backend_is_not_compiled_for_again(compiler, gpu, monkeypatch):
    monkeypatch.setenv("RESSHIFT_FAST_VERIFY", "0")
    precompilation.prepare_verification(GPU, torch.float32)
    assert compiler == []


def test_a_failed_compilation_is_one_warning(gpu, monkeypatch):
    def compile_jobs(*_, **__):
        raise ahead.CompilationError("no space")

    monkeypatch.setattr(ahead, "compile_jobs", compile_jobs)
    with pytest.warns(RuntimeWarning, match=r"could not be compiled ahead of time \(no space\)") as caught:
        prepare((16, 16, 1))
        prepare((16, 16, 1))
    assert len(caught) == 1
    assert precompilation.records() == []


def test_progress_is_reported(compiler, gpu):
    counts = []
    prepare((16, 16, 1), progress=lambda *count: counts.append(count))
    assert counts == [(1, 2), (2, 2)]


def test_a_shape_that_no_pipeline_makes_is_refused():
    with pytest.raises(ValueError, match="expected at least one, of multiples of"):
        precompilation.restoration_case(SPEC, torch.float32, (17, 16, 1), GPU, 90)


@pytest.mark.parametrize(("tiles", "shapes"), [((1, 1), [1]), ((2, 2), [4]), ((3, 2), [4, 2])], ids=str)
def test_shapes_of_a_photo_are_those_of_its_batches(tiles, shapes):
    side = SPEC.plan_tiles(16, 16, 16, None)[0].tile
    height, width = (16 if n == 1 else 16 * n - 8 for n in tiles)
    rows, columns = SPEC.plan_tiles(height, width, 16)
    assert (len(rows.starts), len(columns.starts)) == tiles
    assert precompilation.shapes(SPEC, height, width, 16, 4) == [(side, side, batch) for batch in shapes]


@pytest.mark.slow
def test_kernels_of_a_restoration_are_compiled_and_found_again(machine):
    case = limited(precompilation.restoration_case(SPEC, torch.float32, (16, 16, 1), GPU, 90), *SAMPLING)
    outcomes = precompilation.compile_cases([case], progress=False, workers=2)
    names = {outcome.kernel for outcome in outcomes}
    assert names == {"prior_sample_kernel", "posterior_step_kernel"}
    assert all(outcome.compiled and not outcome.error for outcome in outcomes)
    assert precompilation.is_compiled(case)
    (record,) = precompilation.records()
    assert record.is_current and record.arch == 90 and record.title == f"{SPEC.name} float32 16×16 batch 1"
    assert record.kernels == record.present == len(outcomes) == len(record.files)
    assert not any(outcome.compiled for outcome in precompilation.compile_cases([case], progress=False, workers=1))


@pytest.mark.slow
def test_kernels_of_verification_are_those_that_it_launches(machine):
    """Compared with a run of verification on a fake GPU, which takes longer."""
    whole = precompilation.verification_case(torch.float32, GPU, 90)
    assert {name for name, _ in whole.verified} == {o.name for o, _ in backends.verified_operators(GPU, torch.float32)}
    found = _in_a_compiling_process(
        """
from resshift_fast.restoration.fake_gpu import FusedPath, fake_gpu
from resshift_fast.kernels.launch import record

def fake(x):
    if not isinstance(x, torch.Tensor):
        return x
    extent = 1 + sum((side - 1) * stride for side, stride in zip(x.shape, x.stride()))
    whole = torch.empty(x.storage_offset() + extent, dtype=x.dtype, device="cuda")
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())

class Nested(FusedPath):
    def launched(self, name, function, args, result, launches):
        theirs.update(ahead.job_of(launch, 90) for launch in launches)

case = precompilation.verification_case(torch.bfloat16, GPU, 90)
ours, theirs = set(precompilation.emit_jobs(lambda job: None, [case])[0]), set()
for name, dtype in case.verified:
    for example in backends.OPERATORS[name].examples(torch.device("cpu"), dtype):
        with fake_gpu(90), Nested(lambda *_: ("triton",)), record() as launches:
            args, kernel = [fake(x) for x in example], backends.kernel(name, "triton")
            if kernel.unsupported(*args) is None:
                kernel.function(*args)
        theirs.update(ahead.job_of(launch, 90) for launch in launches)
print(json.dumps([len(ours), len(theirs), ours == theirs]))
"""
    )
    assert found[0] == found[1] > 10 and found[2]


@pytest.mark.slow
def test_a_process_that_has_imported_nothing_else_knows_all_operators():
    script = "from resshift_fast.restoration import precompilation as p; import torch\n"
    script += "print(len(dict(p.verification_case(torch.float16, torch.device('cuda', 0), 90).orders)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    inference = [operator for operator in backends.OPERATORS.values() if not operator.training]
    assert int(done.stdout) == 2 * len(inference) > 20, done.stderr


@pytest.mark.slow
def test_one_step_has_the_kernels_of_all_steps(machine):
    found = _in_a_compiling_process(
        """
case = precompilation.restoration_case(SPECS["x4"], torch.bfloat16, (16, 16, 1), GPU, 90)
once = set(precompilation.emit_jobs(lambda job: None, [case])[0])
precompilation._once = lambda function: function
every = set(precompilation.emit_jobs(lambda job: None, [case])[0])
print(json.dumps([len(once), once == every]))
"""
    )
    assert found[0] > 10 and found[1]


def _in_a_compiling_process(script: str) -> list:
    """What a script prints as JSON in a process without the interpreter."""
    head = (
        "import json, torch; from pipelines import SPECS; from resshift_fast import backends; "
        "from resshift_fast.restoration import precompilation; "
        "from resshift_fast.kernels import ahead; GPU = torch.device('cuda', 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", head + script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_the_first_call_compiles_nothing(machine, dtype):
    found = _in_a_compiling_process(
        f"""
import numpy, triton
from resshift_fast import Pipeline
missed = []
triton.knobs.compilation.listener = lambda src, cache_hit, **_: cache_hit or missed.append(src.name)
pipeline = Pipeline.from_pretrained("nano-x4", device="cuda", dtype="{dtype}", progress=False)
pipeline(numpy.zeros((64, 96, 3), numpy.uint8), progress=False)
kernels = [record.kernels for record in precompilation.records()]
print(json.dumps([missed, kernels]))
"""
    )
    assert found[0] == [] and len(found[1]) == 2 and min(found[1]) > 5
