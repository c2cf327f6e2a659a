"""Trainings that are stopped, end in an error or are killed, and continue bit for bit."""

import errno
import os
import signal
from dataclasses import replace

import pytest
import torch
from training_runs import make_config, make_trainer, random_batch, read_log

from resshift_fast.training import networks
from resshift_fast.training.degradations import Mixture
from resshift_fast.training.interfaces import Batch
from resshift_fast.training.run_folder import RunFolder


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_resuming_gives_the_uninterrupted_weights_bit_for_bit(photos, tmp_path, precision):
    options = {"rollout": 0.5, "precision": precision}
    whole = make_trainer(make_config(photos, tmp_path / "whole", **options))
    assert whole.run()
    assert not make_trainer(make_config(photos, tmp_path / "parts", **options)).run(stop_after=3)
    resumed = make_trainer(make_config(photos, tmp_path / "parts", **options))
    assert resumed.run()
    weights, averages = whole.denoiser.state_dict(), whole.average.state
    assert all(torch.equal(value, weights[name]) for name, value in resumed.denoiser.state_dict().items())
    assert all(torch.equal(value, averages[name]) for name, value in resumed.average.state.items())
    logs = [read_log(tmp_path / name) for name in ("whole", "parts")]
    losses = [[(row["step"], row["loss"], row["lr"]) for row in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert any(not torch.equal(value, averages[name]) for name, value in weights.items())


def test_steps_logged_after_the_checkpoint_are_logged_once(photos, tmp_path):
    trainer = make_trainer(make_config(photos, tmp_path))
    trainer.run(stop_after=2)
    trainer.run_folder.log.append(step=3, loss="9.9")
    make_trainer(make_config(photos, tmp_path)).run()
    assert [row["step"] for row in read_log(tmp_path)] == list("123456")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 2}, "seed was 0 and is now 2; give --override seed=2 to change it, or the old value, or start in"),
        ({"steps": 9}, "steps"),
        ({"mixture": Mixture(clean=0.5)}, "mixture.clean was 0.35"),
        ({"objective_options": {"weight": 2.0}}, "objective_options.weight was None and is now 2.0"),
    ],
    ids=["seed", "steps", "mixture", "options"],
)
def test_resuming_with_other_settings_names_the_field(photos, tmp_path, changes, field):
    config = make_config(photos, tmp_path)
    make_trainer(config).run(stop_after=1)
    with pytest.raises(ValueError, match=field):
        make_trainer(replace(config, **changes)).run()


def test_a_run_that_diverged_before_its_first_checkpoint_begins_anew(photos, tmp_path):
    trainer = make_trainer(make_config(photos, tmp_path))
    with pytest.raises(FloatingPointError, match="at step 0; .* precision=float32: it begins anew"):
        trainer.train_step(Batch(torch.full((1, 3, 64, 64), float("nan")), torch.zeros(1, 3, 16, 16)))


def test_a_diverged_run_resumes_as_its_error_says(photos, tmp_path, capsys):
    config = make_config(photos, tmp_path)
    trainer = make_trainer(config)
    trainer.run(stop_after=1)
    for broken in ("the loss became nan", "the gradient became nan"):
        batch = Batch(torch.full((1, 3, 64, 64), float("nan")), torch.zeros(1, 3, 16, 16))
        if "gradient" in broken:
            batch = random_batch()
            next(trainer.denoiser.parameters()).register_hook(lambda grad: grad * float("nan"))
        before = {name: value.clone() for name, value in trainer.denoiser.state_dict().items()}
        with pytest.raises(
            FloatingPointError, match=f"{broken} at step 1;.* with --override lr=…, grad_clip=… or prec"
        ):
            trainer.train_step(batch)
        assert all(torch.equal(value, before[name]) for name, value in trainer.denoiser.state_dict().items())
    changed = config.overridden("lr=1e-7, grad_clip=0.1,precision=bfloat16,weight_decay=0.01,batch=4,steps=7")
    assert changed.min_lr == 1e-7 and changed.batch_size == 4
    again = make_trainer(changed)
    assert again.run() and again.step == 7
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.01
    assert "at step 1; steps was 6 and is now 7; batch_size was 2 and is now 4; lr was 0.001" in capsys.readouterr().err
    rows = read_log(tmp_path)
    assert float(rows[-1]["lr"]) <= 1e-7 and rows[-1]["step"] == "7"
    (note,) = [row["note"] for row in rows if row["note"]]
    assert "lr was 0.001 and is now 1e-07" in note and "precision was float32 and is now bfloat16" in note
    # It continues with the same command, and without --override only with the values that it has now.
    assert make_trainer(changed).run()
    with pytest.raises(ValueError, match="lr was 1e-07 and is now 0.001; give --override lr=0.001 to change it"):
        make_trainer(replace(changed, lr=0.001, override=())).run()


def test_settings_that_change_nothing_may_differ(photos, tmp_path):
    config = make_config(photos, tmp_path)
    make_trainer(config).run(stop_after=1)
    assert make_trainer(replace(config, workers=2, log_every=2, save_every=1, val=str(photos))).run()


def test_more_batches_with_a_teacher_may_be_asked_for_later(photos, tmp_path):
    taught = {"folder": "here", "batches": 2, "clean": 0.5}
    saved = make_config(photos, tmp_path, taught=taught).to_dict()
    assert make_config(photos, tmp_path, taught=taught | {"folder": "there", "batches": 9}).check_resumable(saved) == []
    with pytest.raises(ValueError, match="taught.clean was 0.5 and is now 0.1"):
        make_config(photos, tmp_path, taught=taught | {"clean": 0.1}).check_resumable(saved)


def test_a_models_name_stands_for_its_weights(tmp_path):
    assert networks.initial_weights("nano-x4").name == "nano-x4.safetensors"
    assert networks.initial_weights(str(tmp_path / "mine.pth")) == tmp_path / "mine.pth"


def test_a_damaged_checkpoint_is_one_clear_error(photos, tmp_path):
    config = make_config(photos, tmp_path)
    (tmp_path / "last.pt").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"last\.pt cannot be read"):
        make_trainer(config).run()


def test_a_signal_ends_after_the_step_and_the_run_continues(photos, tmp_path):
    config = make_config(photos, tmp_path)
    trainer = make_trainer(config)
    step = trainer.train_step

    def interrupted(batch):
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    trainer.train_step = interrupted
    missed = []
    before = signal.signal(signal.SIGTERM, lambda *_: missed.append("SIGTERM"))  # which would end the tests
    try:
        own = signal.getsignal(signal.SIGTERM)
        assert trainer.run() is False and not missed
        assert trainer.step == 2 and signal.getsignal(signal.SIGTERM) is own
        assert make_trainer(config).run() is True
    finally:
        signal.signal(signal.SIGTERM, before)


def test_training_can_start_from_every_file_that_restore_loads(photos, tmp_path):
    first = make_trainer(make_config(photos, tmp_path / "first", steps=2))
    first.run()
    averages = first.average.state
    files = {
        "last": tmp_path / "first" / "last.pt",
        "best": tmp_path / "first" / "best.safetensors",
        "params": tmp_path / "params.pt",
        "module": tmp_path / "module.pth",
    }
    torch.save({"params_ema": averages, "params": first.denoiser.state_dict()}, files["params"])
    torch.save({"state_dict": {f"module.{name}": value for name, value in averages.items()}}, files["module"])
    for kind, path in files.items():
        second = make_trainer(make_config(photos, tmp_path / kind, init_from=str(path)))
        halved = kind == "best"  # float16
        for name, value in second.denoiser.state_dict().items():
            assert torch.equal(value, averages[name].half().float() if halved else averages[name])
        assert second.step == 0


def test_a_folder_in_use_is_refused(photos, tmp_path):
    trainer = make_trainer(make_config(photos, tmp_path))
    problems = []

    def meanwhile(batch, step=trainer.train_step):
        if trainer.step == 2:
            try:
                make_trainer(make_config(photos, tmp_path)).run()
            except BlockingIOError as error:
                problems.append(str(error))
        return step(batch)

    trainer.train_step = meanwhile
    assert trainer.run() and make_trainer(make_config(photos, tmp_path)).run()
    assert problems == [f"another training uses {tmp_path}; choose another --run folder, or stop that one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors",
        "last.pt",
        "log.csv",
        "timesteps.csv",
    ]


def test_files_of_a_killed_training_are_removed(photos, tmp_path):
    left = tmp_path / ".resshift-0123456789abcdef.part"
    left.write_bytes(b"half a checkpoint")
    make_trainer(make_config(photos, tmp_path))
    assert not left.exists()


def test_a_full_disk_is_named_and_keeps_the_previous_state(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.save_last({"step": 1})
    opened = os.fdopen

    class Full:
        """A file without space beyond 200 kB."""

        def __init__(self, *arguments):
            self._file = opened(*arguments)

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, data):
            if self._file.tell() + len(data) > 200_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.write(data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdopen", Full)
        with pytest.raises(OSError, match=r"last\.pt.*space") as raised:
            folder.save_last({"step": 2, "weights": torch.zeros(100_000)})
    assert raised.value.errno == errno.ENOSPC
    assert folder.load_last()["step"] == 1 and [path.name for path in tmp_path.iterdir()] == ["last.pt"]
