"""Cases measured in turn: order, agreement, speed-ups, and independence of failures."""

import csv
import math
from typing import ClassVar

import numpy as np
import pytest
from local_workers import LocalWorker

from resshift_fast.measure import end_to_end
from resshift_fast.measure.end_to_end import measure, psnr, write_csv
from resshift_fast.measure.providers import Case, First, Run, Runner
from resshift_fast.measure.workers import WorkerError

SECONDS = {"reference float32": 8.0, "compile float32": 4.0, "ours float32": 2.0}
SECONDS |= {"reference bfloat16": 6.0, "compile bfloat16": 3.0, "ours bfloat16": 1.0}
EXACT = np.full((1, 3, 4, 4), 0.5, dtype=np.float32)


class FakeWorker(LocalWorker):
    """A runner with known results.

    Attributes:
        errors: difference from the exact image by case. broken: (case, method) that fails.
    """

    errors: ClassVar[dict[str, float]] = {}
    broken: tuple[str, str] = ("", "")

    def __init__(self, make, case):
        assert make is Runner
        self._name, self._made, self.closed = case.name, self, False
        self._turns = 0
        if self.broken == (case.name, "start"):
            raise WorkerError("no such thing")

    def call(self, method):
        self.calls.append((self._name, method))
        if self.broken == (self._name, method):
            raise WorkerError("out of luck")
        return super(LocalWorker, self).__getattribute__(method)()

    def first(self):
        return First(1.5, 3e6)

    def pixels(self):
        return EXACT + self.errors.get(self._name, 0)

    def run(self):
        self._turns += 1
        whole = SECONDS[self._name] * (1, 0.5, 2)[self._turns % 3]
        return Run({"encode": whole / 4, "denoise": whole / 2, "decode": whole / 8, "whole": whole}, 2e6)

    def operations(self):
        return {"encode": 1e9, "denoise": 2e9, "decode": 3e9, "whole": 6e9}


@pytest.fixture
def fake(monkeypatch):
    """A class of workers that the test may change."""
    monkeypatch.setattr(end_to_end, "gemm_rate", lambda dtype, device: 1e10 if dtype == "float32" else 2e10)
    made = type("Fake", (FakeWorker,), {"calls": [], "errors": {}, "broken": ("", "")})
    monkeypatch.setattr(end_to_end, "Worker", made)
    return made


def run(names=tuple(SECONDS), runs=3):
    """Results by case."""
    cases = [Case(*name.split(), device="cpu") for name in names]
    return {result.case.name: result for result in measure(cases, runs).results}


def test_cases_take_turns_and_each_round_begins_with_another(fake):
    names = ["reference float32", "ours float32", "ours bfloat16"]
    run(names)
    order = [names.index(name) for name, method in fake.calls if method == "run"]
    assert order == [0, 1, 2, 1, 2, 0, 2, 0, 1]


def test_medians_spread_rates_and_speedups(fake):
    found = run()["ours bfloat16"]
    assert found.seconds() == (1.0, 0.5, 2.0) and found.seconds("denoise") == (0.5, 0.25, 1.0)
    assert found.rate() == 6 and found.rate("decode") == 3 / 0.125
    assert found.gemm == 20
    assert (found.against_reference, found.against_compile) == (8.0, 3.0)
    assert (found.peak_mb, found.running_mb) == (3.0, 2.0)
    assert found.note == ""


def test_a_bad_image_gets_a_note_instead_of_a_speedup(fake):
    fake.errors = {"ours bfloat16": 0.1, "ours float32": math.nan}
    found = run()
    bad = found["ours bfloat16"]
    assert bad.psnr == pytest.approx(20)
    assert bad.against_reference is None and bad.against_compile is None and bad.seconds()[0] == 1.0
    assert bad.note == "no speed-up: 20.0 dB PSNR, expected at least 35"
    assert found["ours float32"].against_reference is None and "nan" in found["ours float32"].note
    assert found["compile bfloat16"].against_reference == pytest.approx(8 / 3)


def test_there_is_no_speedup_over_a_bad_image(fake):
    fake.errors = {"compile bfloat16": 0.1}
    found = run()["ours bfloat16"]
    assert found.against_reference == 8.0 and found.against_compile is None


@pytest.mark.parametrize(
    "method, error", [("start", "no such thing"), ("first", "luck"), ("pixels", "luck"), ("run", "in round 1")]
)
def test_a_failing_case_leaves_the_others_unaffected(fake, method, error):
    fake.broken = ("compile bfloat16", method)
    found = run()
    failed = found.pop("compile bfloat16")
    assert not failed.timed and error in failed.note and failed.against_reference is None
    assert failed.cells()["whole_median_s"] is None
    assert all(result.timed and len(result.runs) == 3 and result.note == "" for result in found.values())
    assert found["ours bfloat16"].against_compile is None and found["ours bfloat16"].against_reference == 8.0


def test_a_failure_of_plain_float32_is_an_error(fake):
    fake.broken = ("reference float32", "pixels")
    with pytest.raises(ValueError, match="plain float32 restoration.*failed: out of luck"):
        run(["ours bfloat16"])


def test_plain_float32_is_compared_with_but_not_timed_unless_requested(fake):
    found = run(["ours float32"])
    assert set(found) == {"ours float32"} and found["ours float32"].psnr == math.inf
    assert found["ours float32"].against_reference is None
    assert ("reference float32", "run") not in fake.calls


@pytest.mark.parametrize(
    "names, runs, error", [(["ours float32"] * 2, 1, "differ"), ([], 1, "got none"), (["ours float32"], 0, "runs is 0")]
)
def test_bad_arguments_are_refused(fake, names, runs, error):
    with pytest.raises(ValueError, match=error):
        run(names, runs)


def test_the_file_has_one_row_per_case(fake, tmp_path):
    fake.broken = ("compile float32", "first")
    cases = [Case(*name.split(), device="cpu") for name in SECONDS]
    write_csv(measure(cases, 3), tmp_path / "new" / "found.csv")
    rows = list(csv.DictReader((tmp_path / "new" / "found.csv").read_text().splitlines()))
    assert [f"{row['provider']} {row['dtype']}" for row in rows] == list(SECONDS)
    by_name = dict(zip(SECONDS, rows, strict=True))
    assert float(by_name["ours bfloat16"]["speedup_compile"]) == 3.0
    assert float(by_name["ours float32"]["decode_share_of_gemm"]) == pytest.approx(3 / 0.25 / 10)
    assert by_name["compile float32"]["whole_median_s"] == "" and by_name["compile float32"]["note"]


def test_psnr():
    assert psnr(EXACT, EXACT) == math.inf
    assert psnr(EXACT + 0.01, EXACT) == pytest.approx(40, abs=1e-4)
    assert math.isnan(psnr(EXACT[:, :2], EXACT))
