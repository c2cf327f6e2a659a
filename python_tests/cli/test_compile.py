"""`resshift-fast compile`: the cases for which kernels are compiled, and what it and doctor print about them."""

import json

import pytest
import torch

from resshift_fast.models import catalog
from resshift_fast.restoration import precompilation

pytest.importorskip("triton")
from resshift_fast.kernels import ahead


@pytest.fixture
def cases(monkeypatch, tmp_path) -> list:
    """The cases to compile, recorded by a stand-in that compiles one kernel of each and fails at another."""
    cases = []

    def compile_jobs(source, wanted, *, workers, advance):
        cases.extend(wanted)
        jobs = {i: [(i, "right"), (i, "wrong")] for i in range(len(wanted))}
        outcomes = {}
        for of in jobs.values():
            outcomes |= {
                of[0]: ahead.Outcome("right", "right.json", True),
                of[1]: ahead.Outcome("wrong", error="E: no"),
            }
        (tmp_path / "right.json").touch()
        return outcomes, jobs

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(ahead, "compile_jobs", compile_jobs)
    return cases


def test_kernels_are_compiled_for_a_gpu_that_is_not_here(program, cases, tmp_path):
    outcome = program("compile", "--model", "realsr-x4-v3", "--size", "64x128", "--dtype", "bfloat16", "--arch", 86)
    spec = catalog.get("realsr-x4-v3")
    assert [(case.spec, case.shape, case.arch) for case in cases] == [(spec, (128, 64, 1), 86), (None, (0, 0, 0), 86)]
    assert all(dict(case.orders)["group_norm", torch.bfloat16] == ("triton",) for case in cases)
    assert "realsr-x4-v3 bfloat16 64×128 batch 1 for sm_86\n" in outcome.out
    assert f"4 kernels in {tmp_path}, 2 of them compiled in " in outcome.out
    assert outcome.errors == ["error: wrong: E: no"] * 2 and outcome.code == 1


def test_doctor_says_what_is_compiled(program, cases, tmp_path):
    assert "(compiled kernels: none yet;" in program("doctor").out
    program("compile", "--arch", 90)
    tile = catalog.get(catalog.DEFAULT_MODEL).tile
    title = f"{catalog.DEFAULT_MODEL} float32 {tile}×{tile} batch 1"
    assert f"{title} for sm_90 1 of 2" in program("doctor").out
    (tmp_path / "right.json").unlink()
    assert f"{title} for sm_90 0 of 2" in program("doctor").out
    compiled = json.loads(program("doctor", "--json").out)["compiled"]
    assert {"title": title, "arch": 90, "kernels": 2, "present": 0, "is_current": True}.items() <= next(
        record for record in compiled if record["title"] == title
    ).items()


def test_doctor_counts_other_versions_separately(program, cases, monkeypatch):
    program("compile", "--arch", 90)
    monkeypatch.setattr(precompilation, "_sources", lambda: "others")
    assert "(compiled kernels: 2 more for other versions)" in program("doctor").out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--size", "64by64", "--arch", "90"], "size is '64by64', expected the sides of a photo in pixels"),
        (["--dtype", "int8", "--arch", "90"], "dtype is 'int8', expected one of bfloat16"),
        (["--model", "nothing", "--arch", "90"], "nothing"),
        pytest.param(
            [],
            "there is no GPU here; name the one to compile for, such as --arch 90",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
    ids=["size", "dtype", "model", "gpu"],
)
def test_errors_are_one_line(program, cases, arguments, error):
    outcome = program("compile", *arguments)
    assert outcome.code == 1 and len(outcome.errors) == 1 and error in outcome.errors[0]
    assert cases == []


def test_interpreted_kernels_are_not_compiled(program, cases, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset it" in program("compile", "--arch", 90).errors[0]
