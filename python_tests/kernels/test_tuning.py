"""The choice of configurations: which are timed, which are rejected, and what is cached."""

import itertools
import os
import threading
import time
import warnings

import pytest
import torch

from resshift_fast import backends, use_backend
from resshift_fast.backends import verification
from resshift_fast.kernels import config_cache, launch, swin_mlp, tuning
from resshift_fast.kernels.tuning import Config, Space, enumerating, measuring, targeting

CPU = torch.device("cpu")
DEFAULT, FAST, SLOW = (Config({"BLOCK": n}) for n in (1, 2, 3))
KEY = (64,)


def make_space(*candidates, name="toy"):
    return Space(name, lambda key: candidates, lambda arch, key: DEFAULT)


class Toy:
    """A fake kernel: what it writes in each configuration, and how long that takes."""

    def __init__(self, wrong=None, fails=(), times=None):
        self.x = torch.linspace(1, 2, 12)
        self.y, self.n = torch.zeros(12), torch.zeros(12, dtype=torch.int64)
        self.wrong, self.fails = wrong or {}, dict(fails)
        self.times = times or {1: 3.0, 2: 1.0, 3: 5.0}
        self.now = None

    def trial(self, config):
        block = self.now = config.blocks["BLOCK"]
        if block in self.fails:
            raise self.fails[block]
        self.y[:8] = 2 * self.x[:8]
        self.n[:] = 7
        if block in self.wrong:
            self.wrong[block](self)
        return self.y, None, self.n

    def timer(self, call):
        call()
        return self.times[self.now]


def choose(space, toy, key=KEY):
    with measuring(toy.timer):
        return space.config(key, CPU, toy.trial)


def test_the_fastest_is_chosen_once():
    space, toy = make_space(SLOW, FAST), Toy()
    assert space.config(KEY, CPU, toy.trial) == DEFAULT
    assert choose(space, toy) == FAST == space.config(KEY, CPU)
    assert space.config((128,), CPU) == DEFAULT
    assert toy.now is not None
    toy.now = None
    assert choose(space, toy) == FAST and toy.now is None


def test_the_default_is_timed_too():
    assert choose(make_space(SLOW), Toy()) == DEFAULT


def test_elements_that_no_trial_writes_are_restored():
    """For example the part of an output that another kernel has written before."""
    toy = Toy()
    toy.y[8:] = 3.0
    assert choose(make_space(SLOW, FAST), toy) == FAST
    assert toy.y.equal(torch.cat([2 * toy.x[:8], torch.full((4,), 3.0)])) and toy.n.eq(7).all()


def one_wrong(toy):
    toy.y[5] *= 1.01


def unwritten(toy):
    toy.y[5] = torch.nan


def garbage(toy):
    toy.y.normal_()


def out_of_range(toy):
    toy.y[9] = 1.0


def wrong_index(toy):
    toy.n[3] = 8


def rounded(toy):
    toy.y[5] *= 1 + 1e-6


@pytest.mark.parametrize("fault", [one_wrong, unwritten, garbage, out_of_range, wrong_index], ids=lambda f: f.__name__)
def test_a_candidate_that_writes_something_else_is_rejected_with_a_warning(fault):
    toy = Toy(wrong={2: fault})
    with pytest.warns(RuntimeWarning, match=r"toy \(64,\): BLOCK 2, num_warps 4, .*is not used: its output") as caught:
        assert choose(make_space(SLOW, FAST), toy) == DEFAULT
    assert len(caught) == 1


def test_a_candidate_whose_results_change_from_run_to_run_is_rejected():
    runs = itertools.count()

    def unsteady(toy):
        toy.y[5] *= 1 + 1e-6 * next(runs)

    with pytest.warns(RuntimeWarning, match="BLOCK 2, .* is not used: its output 0 differs from run to run"):
        assert choose(make_space(SLOW, FAST), Toy(wrong={2: unsteady})) == DEFAULT


def test_rounding_is_allowed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(make_space(SLOW, FAST), Toy(wrong={2: rounded})) == FAST


@pytest.mark.parametrize("error", [RuntimeError("ptxas"), ValueError("no such layout"), MemoryError()], ids=repr)
def test_a_candidate_that_fails_is_rejected(error):
    assert choose(make_space(SLOW, FAST), Toy(fails={2: error})) == DEFAULT


def test_another_is_chosen_if_the_default_fails():
    assert choose(make_space(SLOW, FAST), Toy(fails={1: RuntimeError()})) == FAST


def test_the_default_is_chosen_if_all_fail():
    error = RuntimeError("out of registers")
    toy = Toy(fails=dict.fromkeys((1, 2, 3), error))
    assert choose(make_space(SLOW, FAST), toy) == DEFAULT


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_an_error_that_is_not_the_candidates_is_raised(error):
    space, toy = make_space(SLOW, FAST), Toy(fails={2: error()})
    toy.y[8:] = 3.0
    with pytest.raises(error):
        choose(space, toy)
    assert toy.y[8:].eq(3.0).all()
    assert choose(space, Toy()) == FAST


def test_nothing_is_timed_on_a_device_without_a_timer():
    toy = Toy()
    with measuring():
        assert make_space(FAST).config(KEY, CPU, toy.trial) == DEFAULT
    assert toy.now is None


def test_nothing_is_timed_while_launches_are_recorded_or_another_target_is_set():
    toy = Toy()
    with launch.record(), measuring(toy.timer):
        assert make_space(FAST).config(KEY, CPU, toy.trial) == DEFAULT
    with targeting(90), measuring(toy.timer):
        assert make_space(FAST).config(KEY, CPU, toy.trial) == DEFAULT
    assert toy.now is None


# threads


def in_threads(*functions):
    failed = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failed and not any(thread.is_alive() for thread in threads)


def test_measuring_and_targeting_are_local_to_a_thread():
    """The first thread leaves its blocks while the second is inside: a global would keep the first one's values."""
    entered, left = threading.Event(), threading.Event()
    space, toy = make_space(FAST), Toy()

    def first():
        with measuring(toy.timer), targeting(90):
            entered.wait(10)
            assert tuning.architecture(CPU) == 90
        left.set()

    def second():
        assert space.config(KEY, CPU, toy.trial) == DEFAULT
        with measuring(toy.timer), targeting(120):
            entered.set()
            left.wait(10)
            assert tuning.architecture(CPU) == 120
        assert tuning.architecture(CPU) == tuning.FALLBACK_ARCHITECTURE
        assert space.config(KEY, CPU, toy.trial) == DEFAULT

    in_threads(first, second)
    assert space.config(KEY, CPU, toy.trial) == DEFAULT and toy.now is None


def test_one_thread_times_at_once_and_each_key_is_timed_once():
    space, inside, most, timed = make_space(SLOW, FAST), [], [], []

    def ask(key):
        toy = Toy()

        def timer(call):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()
            timed.append(key)
            return toy.timer(call)

        with measuring(timer):
            assert space.config(key, CPU, toy.trial) == FAST

    in_threads(*(lambda key=key: ask(key) for key in ((1,), (2,), (1,), (2,))))
    assert max(most) == 1
    assert sorted(timed) == 3 * [(1,)] + 3 * [(2,)]


def test_a_thread_that_does_not_measure_does_not_wait():
    space, toy, timing, answered = make_space(FAST), Toy(), threading.Event(), threading.Event()

    def timer(call):
        timing.set()
        assert answered.wait(10)
        return toy.timer(call)

    def measure():
        with measuring(timer):
            assert space.config(KEY, CPU, toy.trial) == FAST

    def ask():
        assert timing.wait(10)
        assert space.config(KEY, CPU, Toy().trial) == DEFAULT
        answered.set()

    in_threads(measure, ask)


# enumeration


def test_launches_of_all_candidates_are_recorded():
    x = torch.empty(1, 64, 16, 16, device="meta")
    parameters = [torch.empty(s, device="meta") for s in ((64,), (64,), (128, 64), (128,), (64, 128), (64,))]
    with launch.record() as launches, enumerating():
        swin_mlp.forward(x, 32, *parameters[:2], *parameters[2:], 1e-5)
    expected = [(c.blocks, c.num_stages) for c in swin_mlp.SPACE.candidates((256, 256, 64, 128, 4))]
    names = expected[0][0]
    found = [({n: x.constants[n] for n in names}, x.num_stages) for x in launches if x.name == "swin_mlp_kernel"]
    assert all(x in expected for x in found) and all(x in found for x in expected) and len(expected) > 2
    assert len(found) == len(expected) + 1  # and the chosen one


# the cache on disk


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """A cache folder for one test."""
    monkeypatch.setenv("RESSHIFT_FAST_AUTOTUNE_CACHE", "1")
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path))
    config_cache.forget()
    yield tmp_path / "configurations"
    config_cache.forget()


def test_a_choice_is_read_back_by_another_process(stored):
    toy = Toy()
    assert choose(make_space(SLOW, FAST), toy) == FAST
    config_cache.forget()
    assert make_space(SLOW, FAST).config(KEY, CPU) == FAST
    assert make_space(SLOW, FAST, name="other").config(KEY, CPU) == DEFAULT
    assert make_space(SLOW).config(KEY, CPU) == DEFAULT  # the stored choice is not a candidate


def test_a_disabled_cache_is_neither_read_nor_written(stored, monkeypatch):
    choose(make_space(SLOW, FAST), Toy())
    assert list(stored.glob("*.json"))
    monkeypatch.setenv("RESSHIFT_FAST_AUTOTUNE_CACHE", "0")
    config_cache.forget()
    space = make_space(SLOW, FAST)
    assert space.config(KEY, CPU) == DEFAULT
    before = [path.read_bytes() for path in stored.glob("*.json")]
    assert choose(space, Toy(times={1: 3.0, 2: 2.0, 3: 1.0})) == SLOW
    assert [path.read_bytes() for path in stored.glob("*.json")] == before


def test_a_rejected_choice_is_replaced_by_the_default(stored):
    space, toy = make_space(SLOW, FAST), Toy()
    with tuning.watching() as watched:
        assert choose(space, toy) == FAST
    (choice,) = watched
    assert str(choice) == "toy (64,) with BLOCK 2, num_warps 4, num_stages 2"
    choice.reject()
    assert space.config(KEY, CPU) == DEFAULT
    config_cache.forget()
    assert make_space(SLOW, FAST).config(KEY, CPU) == DEFAULT
    with tuning.watching() as watched:
        choose(space, toy)
    assert watched == []


# whole operators


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs a stand-in on the CPU")
def test_results_of_measured_configurations_are_compared_with_plain_pytorch(monkeypatch):
    """A candidate within the tuner's tolerance of the default may still exceed the operator's own."""
    torch.manual_seed(0)
    shapes = (1, 32, 8, 8), (32,), (32,), (64, 32), (64,), (32, 64), (32,)
    x, *parameters = (torch.randn(shape) for shape in shapes)
    args, space, toy = (x, 4, *parameters, 1e-5), make_space(SLOW, FAST), Toy()
    plain = backends.OPERATORS["swin_mlp"].plain

    def forward(*args):
        y = torch.empty_like(args[0])

        def start(config):
            toy.now = config.blocks["BLOCK"]
            y.copy_(plain(*args))
            if config == FAST:
                y.mul_(1 + 5e-4)
            return (y,)

        start(space.config(KEY, CPU, start))
        return y

    monkeypatch.setattr(tuning, "LIMITS", {torch.float32: 1e-3})
    stand_in = backends.Operator("swin_mlp", plain, lambda *_: [], {"triton": lambda: backends.Kernel(forward)})
    monkeypatch.setitem(backends.OPERATORS, "swin_mlp", stand_in)
    monkeypatch.setenv("RESSHIFT_FAST_VERIFY", "0")
    with use_backend("triton"):
        with backends.measuring(toy.timer), pytest.warns(RuntimeWarning) as caught:
            found = backends.run("swin_mlp", *args)
            again = backends.run("swin_mlp", *args)
        assert found.equal(plain(*args)) and again.equal(found) and space.config(KEY, CPU) == DEFAULT
    (warned,) = map(str, (w.message for w in caught))
    assert "swin_mlp: toy (64,) with BLOCK 2" in warned and "output 0 has relative error 5.0e-04" in warned


def test_integer_outputs_are_compared_by_the_tuner_alone():
    """Rounding may select another index of equal distance, so a comparison with plain PyTorch could fail."""
    space, toy, calls = make_space(SLOW, FAST), Toy(), []

    def function(x):
        space.config(KEY, CPU, toy.trial)
        calls.append(x)
        return x, x.long()

    def plain(x):
        return x, x.long() + 1

    with measuring(toy.timer), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        verification.watched("toy", function, plain)(torch.ones(3))
    assert space.config(KEY, CPU) == FAST and len(calls) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_all_memory_is_freed():
    x = torch.zeros(64, device="cuda")
    before = torch.cuda.memory_allocated()
    with measuring():
        make_space(FAST).config(KEY, x.device, lambda config: (x.zero_(),))
        assert torch.cuda.memory_allocated() > before + (1 << 20)
    assert torch.cuda.memory_allocated() <= before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_on_a_gpu_candidates_that_do_not_fit_are_rejected(dtype, monkeypatch):
    torch.manual_seed(0)
    shapes = (2, 96, 32, 32), (96,), (96,), (384, 96), (384,), (96, 384), (96,)
    x, *parameters = (torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes)
    candidates = swin_mlp.SPACE.candidates
    too_large = Config(
        {"BLOCK_M": 64, "BLOCK_H": 64, "BLOCK_N": 32, "CHUNKS": 3}, num_stages=40
    )  # more shared memory than there is
    monkeypatch.setattr(swin_mlp.SPACE, "candidates", lambda key: [*candidates(key), too_large])
    monkeypatch.setattr(swin_mlp.SPACE, "_chosen", {})
    expected = swin_mlp.forward(x, 32, *parameters, 1e-5)
    with backends.measuring(), tuning.watching() as measured, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = swin_mlp.forward(x, 32, *parameters, 1e-5)
    (choice,) = (c for c in measured if c.space is swin_mlp.SPACE)
    assert choice.config != too_large
    assert (found - expected).abs().max() <= tuning.LIMITS[dtype] * expected.abs().max()
    assert swin_mlp.forward(x, 32, *parameters, 1e-5).equal(found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_longer_kernel_takes_longer():
    def trial(config):
        torch.cuda._sleep(20_000 * config.blocks["BLOCK"])
        return ()

    with measuring():
        found = make_space(FAST, SLOW).config(KEY, torch.device("cuda", torch.cuda.current_device()), trial)
    assert found == DEFAULT  # of block 1
