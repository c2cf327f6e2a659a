"""Measured orders of backends: which file has precedence, what it changes, and what is ignored."""

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from resshift_fast import backends, ops, use_backend
from resshift_fast.backends import (
    OPERATORS,
    Kernel,
    autotune_cache,
    descriptions,
    dispatch,
    native,
    registry,
    verification,
)

CPU = torch.device("cpu")
processor = autotune_cache.processor  # tests see one of their own
OPERATOR, MODEL = "conv2d", "Test CPU (R) @ 3.1 GHz"
X, WEIGHT = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3)
DEFAULTS = (None, 0, None, None, 1e-5, None, None, None)  # of the registered operator's arguments after the padding
VALUES = {"cpu": 1, "cuda": 2, "triton": 3}


@pytest.fixture(autouse=True)
def three_backends(monkeypatch, tmp_path):
    """conv2d has three stand-ins on the CPU, each of which returns one constant; the cache is empty."""
    before = OPERATORS[OPERATOR]

    def loader(value):
        return lambda: Kernel(lambda *args: torch.full_like(before.plain(*args), value))

    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(verification.VARIABLE, "0")
    monkeypatch.delenv(autotune_cache.VARIABLE)
    monkeypatch.setattr(autotune_cache, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(autotune_cache, "processor", lambda: MODEL)
    monkeypatch.setattr(native, "missing", lambda name: None)
    monkeypatch.setattr(registry, "unavailable", lambda backend: None)
    monkeypatch.setattr(descriptions, "has_triton", lambda: True)
    monkeypatch.setitem(registry.ORDER, "cpu", tuple(VALUES))
    monkeypatch.setattr(dispatch, "_preferred", "auto")
    autotune_cache.forget()
    backends.add(replace(before, loaders={name: loader(value) for name, value in VALUES.items()}))
    yield
    monkeypatch.undo()
    autotune_cache.forget()
    backends.add(before)


def measured(*order: str, dtype: str = "float32", **others) -> dict:
    """The content of a cache file."""
    return {"device": MODEL, "operators": {OPERATOR: {dtype: {"order": list(order), **others}}}}


def write(content, folder=None) -> None:
    """Write the user's cache file, or the one in `folder`; bytes are written unchanged."""
    path = autotune_cache.user_path(MODEL) if folder is None else folder / autotune_cache.filename(MODEL)
    if isinstance(content, dict):
        autotune_cache.store(content, path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        autotune_cache.forget()
    dispatch._forget()


def ran(dtype: torch.dtype = torch.float32) -> str:
    """The backend that runs a call."""
    x, weight = X.to(dtype), WEIGHT.to(dtype)
    y = ops.conv2d(x, weight)
    if y.equal(OPERATORS[OPERATOR].plain(x, weight, None, 1, *DEFAULTS)):
        return "reference"
    return next(name for name, value in VALUES.items() if y.eq(value).all())


@pytest.mark.parametrize(
    "order, expected",
    [
        (("triton", "cpu", "cuda", "reference"), ("triton", "cpu", "cuda")),
        (("cuda", "reference", "cpu", "triton"), ("cuda",)),
        (("reference", "cpu", "cuda", "triton"), ()),
        (("cuda", "reference"), ("cuda", "cpu", "triton")),
        (("reference",), ("cpu", "cuda", "triton")),
        (("cuda", "cpu"), ("cuda", "cpu", "triton")),
        (("tpu", "triton", "reference", "cpu", "cuda"), ("triton",)),
    ],
    ids=[
        "all",
        "reference-second",
        "reference-first",
        "unmeasured-last",
        "unmeasured-alone",
        "no-reference",
        "unknown",
    ],
)
def test_a_stored_order_replaces_the_default(order, expected):
    assert ran() == "cpu"
    write(measured(*order))
    assert autotune_cache.measured_order(tuple(VALUES), OPERATOR, CPU, torch.float32) == expected
    assert ran() == (expected or ("reference",))[0]
    assert ran(torch.bfloat16) == "cpu"  # not measured
    args = (X, WEIGHT, None, 1, *DEFAULTS)
    assert backends.chosen(OPERATOR, *args) == ran()
    assert backends.fused(OPERATOR, CPU)


def test_a_refused_backend_is_not_used():
    write(measured("cuda", "reference", refused={"cpu": "output 0 differs"}))
    assert autotune_cache.measured_order(tuple(VALUES), OPERATOR, CPU, torch.float32) == ("cuda", "triton")


def test_a_preferred_backend_overrides_a_measured_order():
    write(measured("triton", "cuda", "cpu"))
    with use_backend("cpu"):
        assert ran() == "cpu"
    with use_backend("reference"):
        assert ran() == "reference"
    assert ran() == "triton"


def test_the_users_order_overrides_the_packages(tmp_path):
    shipped = measured("triton", "cpu", "cuda")
    shipped["operators"][OPERATOR] |= measured("cuda", dtype="float16")["operators"][OPERATOR]
    write(shipped, tmp_path / "shipped")
    assert (ran(), ran(torch.float16)) == ("triton", "cuda")
    write(measured("cpu", "cuda", "triton"))
    assert (ran(), ran(torch.float16)) == ("cpu", "cuda")  # the user has not measured float16


def test_a_file_of_another_device_is_not_read(monkeypatch):
    write(measured("triton", "cpu", "cuda"))
    monkeypatch.setattr(autotune_cache, "processor", lambda: "Another CPU")
    dispatch._forget()
    assert ran() == "cpu"


def test_the_cache_can_be_disabled(monkeypatch):
    write(measured("triton", "cpu", "cuda"))
    monkeypatch.setenv(autotune_cache.VARIABLE, "0")
    assert ran() == "cpu"


BROKEN = {
    "not-json": (b"{", "Expecting"),
    "not-text": (b"\xff\xfe\x00", "Expecting value"),
    "empty": (b"", "Expecting value"),
    "list": (b"[]", "its format is None, expected 1"),
    "later-format": (json.dumps({**measured("triton"), "format": 2}).encode(), "its format is 2, expected 1"),
    "other-device": (
        json.dumps({**measured("triton"), "format": 1, "device": "x"}).encode(),
        "it is for 'x', expected 'Test CPU",
    ),
    "no-operators": (json.dumps({"format": 1, "device": MODEL}).encode(), "operators: found None, expected an object"),
    "no-order": (
        json.dumps({"format": 1, **measured(), "operators": {"conv2d": {"float32": {}}}}).encode(),
        "conv2d, float32: order is None, expected a list of backends",
    ),
    "not-names": (
        json.dumps({"format": 1, "device": MODEL, "operators": {"conv2d": {"float32": {"order": [1]}}}}).encode(),
        "order is [1], expected a list of backends",
    ),
}


@pytest.mark.parametrize("content, reason", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_ignored_with_one_warning_that_names_it(content, reason, tmp_path):
    write(measured("triton", "cpu", "cuda"), tmp_path / "shipped")
    write(content)
    with pytest.warns(RuntimeWarning) as caught:
        assert ran() == "triton"  # from the package's file
        dispatch._forget()
        assert (ran(), ran(torch.bfloat16)) == ("triton", "cpu")
    (warning,) = caught
    message = str(warning.message)
    assert message.startswith(f"the autotune cache is ignored: {autotune_cache.user_path(MODEL)}: ")
    assert reason in message


def test_an_unknown_home_folder_gives_no_warning(monkeypatch):
    def unknown(device):
        raise OSError("the home folder is unknown")

    monkeypatch.setattr(autotune_cache, "user_path", unknown)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ran() == "cpu"


def test_verification_still_decides_whether_a_measured_backend_is_used(monkeypatch):
    write(measured("triton", "cuda", "cpu"))
    monkeypatch.setattr(verification, "passes", lambda operator, backend, device, dtype: backend != "triton")
    assert ran() == "cuda"


def test_files_are_read_once(monkeypatch):
    write(measured("triton", "cpu", "cuda"))
    assert ran() == "triton"
    monkeypatch.setattr(autotune_cache, "_read", lambda path, device: pytest.fail("read again"))
    dispatch._forget()
    assert ran() == "triton"
    monkeypatch.setattr(autotune_cache, "find", lambda *_: pytest.fail("looked up for a call whose backend is cached"))
    assert ran() == "triton"


def test_device_and_file_names(monkeypatch):
    assert autotune_cache.device_name(CPU) == MODEL
    assert autotune_cache.device_name(torch.device("meta")) is None
    for available, expected in ((False, None), (True, "NVIDIA H100 80GB HBM3")):
        gpu = SimpleNamespace(is_available=lambda a=available: a, get_device_name=lambda d: "NVIDIA H100 80GB HBM3")
        monkeypatch.setattr(torch, "cuda", gpu)
        assert autotune_cache.device_name(torch.device("cuda", 0)) == expected
    assert autotune_cache.filename("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.json"


def test_status_names_the_file_and_what_was_refused():
    write(measured("triton", "reference", "cpu", refused={"cuda": "output 0 differs at 3 of 9 elements"}))
    (found, other) = (decision for decision in backends.status() if decision.operator == OPERATOR)
    path = autotune_cache.user_path(MODEL)
    assert (found.backend, found.dtypes) == ("triton", ("float32",))
    assert found.reason == (
        f"fastest of triton, reference, cpu as measured ({path}); "
        "cuda refused when measured: output 0 differs at 3 of 9 elements"
    )
    assert (other.backend, other.reason) == ("cpu", "the first that runs on cpu")
    write(measured("reference", "triton", "cpu", "cuda"))
    found = next(decision for decision in backends.status() if decision.operator == OPERATOR)
    assert (found.backend, found.reason) == (
        "reference",
        f"fastest of reference, triton, cpu, cuda as measured ({path})",
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("model name\t: EPYC 9654\nmodel name\t: other\n", "EPYC 9654"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd40\n", "arm64 implementer 0x41 part 0xd40"),
    ],
)
def test_processors_are_told_apart_by_name_or_by_number(monkeypatch, tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(autotune_cache, "Path", lambda _: tmp_path / "cpuinfo")
    assert processor() == expected
