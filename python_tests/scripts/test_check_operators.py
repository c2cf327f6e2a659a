"""scripts/check_operators.py: the faults that it finds, and that a kernel that crashes does not end it."""

import csv
import os
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resshift_fast import backends
from resshift_fast.backends import OPERATORS, Kernel, native

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import check_operators
from check_operators import CASES, NONE, RIGHT, WRONG

NUMBER = next(number for number, case in enumerate(CASES) if case.op == "posterior_step")


class Faulty:
    """Replaces `Checker`: in bfloat16 it hangs, in float16 it ends its process."""

    def __init__(self, *_):
        pass

    def check(self, number, dtype, backward):
        if dtype == "bfloat16":
            time.sleep(600)
        if dtype == "float16":
            os._exit(3)
        return [{"backend": "cpu", "verdict": RIGHT}]


@pytest.mark.slow
def test_a_kernel_that_hangs_or_ends_its_process_does_not_stop_the_others(monkeypatch):
    monkeypatch.setattr(check_operators, "Checker", Faulty)
    args = Namespace(device="cpu", backend=["cpu"], latent=64, batch=1, jobs=1, limit=2.0)
    todo = [(NUMBER, dtype, False) for dtype in ("bfloat16", "float16", "float32", "float32")]
    rows = list(check_operators.checked(todo, args))
    assert [row["verdict"] for row in rows] == [WRONG, WRONG, RIGHT, RIGHT]
    assert all("its process has died" in row["problem"] for row in rows[:2])


@pytest.fixture
def install(monkeypatch):
    """Replaces the CPU kernel of an operator."""
    monkeypatch.setenv("RESSHIFT_FAST_VERIFY", "1")  # so that monkeypatch undoes what a checker sets
    monkeypatch.setattr(native, "missing", lambda name: None)
    before = dict(OPERATORS)

    def put(name, change=None, unsupported=lambda *_: None):
        operator = OPERATORS[name]
        kernel = Kernel(lambda *args: change(operator.plain(*args)), unsupported)
        backends.add(replace(operator, loaders={"cpu": lambda: kernel} if change else {}))

    yield put
    for operator in before.values():
        backends.add(operator)


def check(name, dtype="float32", backward=False):
    number = next(number for number, case in enumerate(CASES) if case.op == name)
    return check_operators.Checker("cpu", ["cpu"], 64, 1).check(number, dtype, backward)[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_wrong_kernel_is_found_although_verification_would_disable_it(dtype, install):
    install("q_sample", lambda y: y)
    assert check("q_sample", dtype)["verdict"] == RIGHT
    install("q_sample", lambda y: y.index_fill(3, torch.tensor([0]), 0.5))
    row = check("q_sample", dtype)
    assert row["verdict"] == WRONG and "output 0" in row["problem"] and row["error"] > row["allowed"]


def test_a_kernel_that_fails_is_wrong(install):
    def fail(_):
        raise RuntimeError("no such\nlaunch")

    install("q_sample", fail)
    row = check("q_sample")
    assert row == {"backend": "cpu", "verdict": WRONG, "problem": "RuntimeError: no such launch"}


@pytest.mark.parametrize("how", ["none", "unsupported"])
def test_a_call_that_no_kernel_supports_is_not_right(how, install):
    install("q_sample", None if how == "none" else lambda y: y, lambda *_: "too small")
    assert check("q_sample") == {"backend": "cpu", "verdict": NONE}


def test_every_case_is_checked_in_every_dtype_and_the_first_one_backward():
    dtypes = ["bfloat16", "float32"]
    found = check_operators.tasks(CASES, dtypes, backward=True)
    assert len(set(found)) == len(found)
    float32_only = sum(check_operators.OPERATORS[case.op].float32_only for case in CASES)
    assert sum(not backward for *_, backward in found) == 2 * len(CASES) - float32_only
    names = {(CASES[number].op, dtype) for number, dtype, backward in found if backward}
    assert ("conv2d", "bfloat16") in names and ("group_norm", "float32") in names
    assert len(check_operators.tasks(CASES, dtypes, backward=False)) == 2 * len(CASES) - float32_only


@pytest.mark.parametrize(
    "verdicts, code", [([RIGHT, NONE], 0), ([RIGHT, WRONG], 1), ([NONE], 1)], ids=["right", "wrong", "nothing"]
)
def test_the_exit_status_and_the_table(verdicts, code, tmp_path, monkeypatch, capsys):
    shared = {"operator": "q_sample", "case": "B1", "dtype": "float32", "pass": "forward", "backend": "reference"}
    rows = [shared | {"verdict": verdict, "problem": "off" if verdict == WRONG else ""} for verdict in verdicts]
    monkeypatch.setattr(check_operators, "checked", lambda todo, args: iter(rows))
    monkeypatch.setattr(backends, "unavailable", lambda name: None)
    path = tmp_path / "rows.csv"
    assert check_operators.main(["--device", "cpu", "--backend", "cpu", "--csv", str(path)]) == code
    with open(path, newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == verdicts
    assert capsys.readouterr().out.splitlines()[1].startswith("q_sample-B1 float32 forward reference: ")


@pytest.mark.parametrize("other", [True, False], ids=["beside-another", "alone"])
def test_a_backend_that_is_missing_is_a_failure_and_the_others_are_checked(other, monkeypatch, capsys):
    monkeypatch.setattr(backends, "unavailable", lambda name: "was not built" if name == "cuda" else None)
    requested = []

    def checked(todo, args):
        requested.append((len(todo) > 0, args.backend))
        return iter([{"operator": "q", "case": "B1", "dtype": "d", "pass": "p", "backend": "cpu", "verdict": RIGHT}])

    monkeypatch.setattr(check_operators, "checked", checked)
    names = ["cuda", "cpu"] if other else ["cuda"]
    assert check_operators.main(["--device", "cpu", "--backend", *names]) == 1
    assert "\ncuda: wrong was not built\n" in capsys.readouterr().out
    assert requested == [(other, ["cpu"] if other else [])]
