"""Distillation into one step: its losses against their formulas in float64, its two optimizers, resuming, teachers."""

import contextlib
import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lpips_formula import formula as lpips_formula
from lpips_formula import random_weights
from safetensors import safe_open
from training_runs import TINY, make_config, read_log

from resshift_fast import Pipeline, use_backend
from resshift_fast.diffusion.schedule import Schedule, schedule_text
from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import AutoencoderConfig, SpaceToDepth, SpaceToDepthConfig, VQAutoencoder
from resshift_fast.models.swin_unet import SwinUNet
from resshift_fast.training import teachers
from resshift_fast.training.distillation import Distillation, evenly_spaced
from resshift_fast.training.interfaces import Batch, Draws, Parts
from resshift_fast.training.lpips import LPIPS
from resshift_fast.training.trainer import Trainer
from resshift_fast.weights.checkpoints import save_safetensors

SMALL = replace(TINY, image_size=4, attention_resolutions=(4,), swin_depth=1, lq_size=4)
TEACHER = replace(
    catalog.get("nano-x4"), denoiser=SMALL, schedule=Schedule(steps=3, kappa=0.3), pad_multiple=4, weights=None
)
STUDENT = catalog.one_step(TEACHER)
LATENT = replace(
    TEACHER,
    denoiser=replace(SMALL, in_channels=3, out_channels=3),
    first_stage=AutoencoderConfig(channels=32, channel_mult=(1, 1, 1), num_res_blocks=(1, 1, 1), codebook_size=32),
    prediction_type="x0",
)


def small_batch():
    return Batch(torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 3, 4, 4) * 2 - 1)


def randomize(module, seed=0):
    """Weights that are nowhere zero, of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.data.normal_(std=fan_in**-0.5, generator=generator)
    return module


def make_objective(spec, student, first_stage, **options):
    model = catalog.one_step(spec)
    rest = (contextlib.nullcontext, torch.device("cpu"), student)
    parts = Parts(model, first_stage, model.schedule.table(), None, *rest)
    objective = Distillation(
        parts, randomize(SwinUNet(spec.denoiser), 2), spec.schedule, optimizer=torch.optim.AdamW, **options
    )
    randomize(objective.networks, 3)
    return objective


def estimate(network, spec, x0, y, lq, t, noise):
    """A model's x̂_0 from q(x_t | x_0, y) of one picture."""
    eta, kappa = spec.schedule.sqrt_etas_all[t] ** 2, spec.schedule.kappa
    x_t = (1 - eta) * x0 + eta * y + kappa * eta**0.5 * noise
    out = network(x_t / (kappa**2 * eta + 1) ** 0.5, torch.tensor([t]), lq)
    return out if spec.prediction_type == "x0" else y - out


def students_result(student, spec, start, y, lq, n, prior, channel):
    """x̂_0 of the student for one picture at step n, from q(x_n | start, y) and noise."""
    eta, kappa = spec.schedule.sqrt_etas_all[n] ** 2, spec.schedule.kappa
    x_t = (1 - eta) * start + eta * y + kappa * eta**0.5 * prior
    out = student(x_t / (kappa**2 * eta + 1) ** 0.5, torch.tensor([n]), lq, None, channel)
    return out if spec.prediction_type == "x0" else y - out


def logits(fake, head, spec, latent, lq):
    """The discriminator's values of one picture's latent, from what the fake model's middle block returns."""
    seen = []
    hook = fake.middle_block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    scale = (spec.schedule.kappa**2 * spec.schedule.sqrt_etas_all[0] ** 2 + 1) ** -0.5
    fake(latent * scale, torch.tensor([0]), lq)
    hook.remove()
    x = seen[0]
    for conv, norm, stride in ((0, 1, 2), (3, 4, 1)):
        x = F.conv2d(x, head[conv].weight, head[conv].bias, stride=stride, padding=1)
        x = F.silu(F.group_norm(x, 32, head[norm].weight, head[norm].bias))
    return F.conv2d(x, head[6].weight, head[6].bias)


def gradients(module):
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


class Given:
    """Draws of given values, in their order."""

    def __init__(self, *values):
        self.values = list(values)

    def normal(self, *shape):
        value = self.values.pop(0)
        assert value.shape[1:] == shape
        return value

    def integers(self, low, high):
        value = self.values.pop(0)
        assert low == 0 and int(value.max()) < high <= 3
        return value


CASES = {
    "plain": (TEACHER, {"mse": 0.5, "student_timesteps": 1, "normalize": False, "adversarial": 0.0}),
    "latent-lpips": (LATENT, {"mse": 0.5, "lpips": 2.0, "student_timesteps": 2, "adversarial": 0.7}),
    "distill-only": (TEACHER, {"mse": 0.0, "adversarial": 0.3}),
}


@pytest.mark.parametrize("kind", CASES)
def test_losses_and_gradients_are_those_of_the_formulas(kind):
    spec, options = CASES[kind]
    stage, perceptual, vgg = SpaceToDepth(SpaceToDepthConfig()), None, None
    if options.get("lpips"):
        stage, perceptual, vgg = randomize(VQAutoencoder(spec.first_stage), 1), LPIPS(), random_weights()
        perceptual.load(*vgg)
    student = randomize(SwinUNet(catalog.one_step(spec).denoiser))
    objective = make_objective(spec, student, stage, rsd=3.0, perceptual=perceptual, **options)
    count, supervised = options.get("student_timesteps", 4), options["mse"] > 0
    steps = {1: [2], 2: [1, 2], 4: [0, 1, 2]}[count]
    assert objective.places.tolist() == steps
    generator = torch.Generator().manual_seed(4)
    high = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    lq = torch.rand(2, 3, 4, 4, generator=generator) * 2 - 1
    channels = spec.denoiser.in_channels
    (prior, last, noise), (channel, last_channel) = (
        [torch.randn(2, depth, 4, 4, generator=generator) for _ in range(number)]
        for depth, number in ((channels, 3), (1, 2))
    )
    t, place = torch.tensor([2, 0]), torch.tensor([0, len(steps) - 1])
    drawn = [*([] if count == 1 else [place]), prior, channel]
    ends = [last, last_channel] if count > 1 and supervised else []
    batch = Batch(high, lq)
    loss = objective(batch, Given(*drawn, *ends, t, noise))
    loss.by_sample.mean().backward()
    assert loss.by_sample.shape == (2,) and loss.t.tolist() == [0, 0]
    assert all(one.grad is None for one in (*objective._teacher.parameters(), *stage.parameters()))
    ours = gradients(student)
    objective.networks.zero_grad()
    student.zero_grad()
    other_loss = objective.auxiliary_loss(batch, Given(*drawn, t, noise))
    other_loss.mean().backward()
    assert all(parameter.grad is None for parameter in student.parameters())

    exact, teacher, others, first_stage = (
        copy.deepcopy(one).double() for one in (student, objective._teacher, objective.networks, stage)
    )
    others.zero_grad()
    fake, head = others["fake"], others["head"].body if options.get("adversarial") else None
    assert ("head" in others) == (head is not None)
    with use_backend("reference"):
        total = other_total = 0
        for i in range(2):
            picture, small = high[i : i + 1].double(), lq[i : i + 1].double()
            truth = first_stage.encode(picture)
            y = first_stage.encode(F.interpolate(small, scale_factor=4, mode="bicubic"))
            draws = (prior[i : i + 1].double(), channel[i : i + 1].double())
            start, n = (y, 2) if count == 1 else (truth, steps[int(place[i])])
            x0 = result = students_result(exact, spec, start, y, small, n, *draws)
            if ends:
                draws = (last[i : i + 1].double(), last_channel[i : i + 1].double())
                result = students_result(exact, spec, y, y, small, 2, *draws)
            step, e = int(t[i]), noise[i : i + 1].double()
            by_teacher, by_fake = (estimate(f, spec, x0, y, small, step, e) for f in (teacher, fake))
            rsd = ((by_teacher - x0) ** 2).mean() - ((by_fake - x0) ** 2).mean()
            if options.get("normalize", True):
                rsd = rsd / (by_teacher - x0).abs().mean().item()
            total = total + 3 * rsd + options["mse"] * ((result - truth) ** 2).mean()
            if options.get("lpips"):
                total = total + 2 * lpips_formula(first_stage.decode(result, quantize=False), picture, *vgg)[0]
            fixed = x0.detach()
            other_total = other_total + ((estimate(fake, spec, fixed, y, small, step, e) - fixed) ** 2).mean()
            if head:
                weight = options["adversarial"]
                total = total - weight * torch.sigmoid(logits(fake, head, spec, x0, small)).log().mean()
                real, made = (torch.sigmoid(logits(fake, head, spec, one, small)) for one in (truth, fixed))
                other_total = other_total - weight * (real.log().mean() + (1 - made).log().mean())
        (total / 2).backward()
        others.zero_grad()
        (other_total / 2).backward()
    assert loss.by_sample.mean().item() == pytest.approx(total.item() / 2, rel=1e-5)
    assert other_loss.mean().item() == pytest.approx(other_total.item() / 2, rel=1e-5)
    compared = [("student", ours, gradients(exact))]
    compared += [(name, gradients(objective.networks[name]), gradients(others[name])) for name in others]
    for name, found, expected in compared:
        error = (found - expected).norm() / expected.norm()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(
    "steps, count, expected",
    [
        (15, 4, [3, 7, 11, 14]),
        (15, 1, [14]),
        (15, 2, [7, 14]),
        (4, 4, [0, 1, 2, 3]),
        (4, 9, [0, 1, 2, 3]),
        (4, 3, [1, 2, 3]),
    ],
)
def test_the_students_timesteps_are_evenly_spaced_up_to_the_last(steps, count, expected):
    assert evenly_spaced(steps, count) == expected


def test_a_fake_model_that_is_the_teacher_gives_no_gradient():
    student = randomize(SwinUNet(STUDENT.denoiser))
    objective = make_objective(TEACHER, student, SpaceToDepth(SpaceToDepthConfig()), mse=0.0, adversarial=0.0)
    objective.networks["fake"].load_state_dict(objective._teacher.state_dict())
    loss = objective(small_batch(), Draws(0, 0, range(2)))
    loss.by_sample.mean().backward()
    assert not loss.by_sample.any() and not gradients(student).any()
    assert objective.report(lambda x: x) == {"rsd_loss": 0.0}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rsd": -1.0}, "expected weights ≥ 0, and rsd, mse and lpips not all 0, got rsd -1"),
        ({"adversarial": -1.0}, "expected weights ≥ 0"),
        ({"rsd": 0.0, "mse": 0.0}, "not all 0"),
        ({"student_timesteps": 0}, "student_timesteps must be at least 1, got 0"),
        ({"fake_steps": 0}, "fake_steps must be at least 1, got 0"),
        ({"lpips": 1.0}, "no LPIPS module was given"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_objective(TEACHER, None, SpaceToDepth(SpaceToDepthConfig()), **options)


# ---- trainings


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file of a teacher."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    teacher = randomize(SwinUNet(SMALL), 5)
    with torch.no_grad():
        teacher.out[2].weight *= 0.1
    save_safetensors(teacher, path, {"model": "nano-x4", "schedule": schedule_text(TEACHER.schedule)})
    return path


def make_trainer(photos, run, weights, **changes):
    options = {"teacher": str(weights), "fake_steps": 2} | changes.pop("objective_options", {})
    config = make_config(photos, run, patch=16, objective="distill", objective_options=options, **changes)
    return Trainer(config, TEACHER)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_student_starts_as_the_teacher(photos, tmp_path, weights):
    trainer = make_trainer(photos, tmp_path, weights)
    batch, t = small_batch(), torch.zeros(2, dtype=torch.int64)
    x_t, z = torch.randn(2, 48, 4, 4), torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        ours = trainer._predict(x_t, t, batch.low, None, z)
        scaled = x_t * trainer.table[t, 6][:, None, None, None]
        expected = trainer.objective._teacher(scaled, torch.tensor([2, 2]), batch.low)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert trainer.spec.name == "nano-x4-1step" and trainer.timesteps.tolist() == [2]


def test_each_optimizer_changes_its_own_network(photos, tmp_path, weights):
    trainer, batch = make_trainer(photos, tmp_path, weights), small_batch()
    student, fake, teacher = trainer.denoiser, trainer.objective.networks, trainer.objective._teacher
    before = [state(one) for one in (student, fake, teacher)]
    trainer._train_auxiliary(batch)
    assert same(before[0], state(student)) and not same(before[1], state(fake))
    assert all(parameter.grad is None for parameter in student.parameters())
    trained = state(fake)
    trainer._train_auxiliary = lambda batch: None
    trainer.train_step(batch)
    assert not same(before[0], state(student)) and same(trained, state(fake)) and same(before[2], state(teacher))


@pytest.mark.slow
def test_resuming_gives_the_uninterrupted_weights_bit_for_bit(photos, tmp_path, weights, capsys):
    options = {"steps": 3, "val": str(photos), "val_every": 3, "val_side": 64, "val_limit": 1}
    whole = make_trainer(photos, tmp_path / "whole", weights, **options)
    assert whole.run()
    assert not make_trainer(photos, tmp_path / "parts", weights, **options).run(stop_after=1)
    resumed = make_trainer(photos, tmp_path / "parts", weights, **options)
    assert resumed.run() and "have changed" not in capsys.readouterr().err
    assert same(state(whole.denoiser), state(resumed.denoiser)) and same(whole.average.state, resumed.average.state)
    assert same(state(whole.objective.networks), state(resumed.objective.networks))
    columns = (
        "step",
        "loss",
        "rsd_loss",
        "mse_loss",
        "generator_loss",
        "fake_loss",
        "discriminator_loss",
        "val_psnr_y_clean",
    )
    logs = [[[row[name] for name in columns] for row in read_log(tmp_path / run)] for run in ("whole", "parts")]
    assert logs[0] == logs[1] and all(logs[0][-1])


def test_a_teacher_that_was_replaced_is_named(photos, tmp_path, weights, capsys):
    path = tmp_path / "teacher.safetensors"
    shutil.copy(weights, path)
    make_trainer(photos, tmp_path / "run", path).run(stop_after=1)
    save_safetensors(randomize(SwinUNet(SMALL), 6), path, {"schedule": schedule_text(TEACHER.schedule)})
    make_trainer(photos, tmp_path / "run", path).run(stop_after=0)
    assert "at step 1; the weights of the teacher have changed\n" in capsys.readouterr().err


def test_the_saved_student_restores_with_one_evaluation(photos, tmp_path, weights, monkeypatch):
    trainer = make_trainer(photos, tmp_path, weights, steps=2)
    trainer.run()
    with safe_open(trainer.run_folder.best, "pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == "nano-x4-1step" and metadata["step"] == "2"
    assert metadata["teacher"] == "nano-x4" and metadata["teacher_weights"] == "teacher.safetensors"
    monkeypatch.setitem(catalog.MODELS, "nano-x4", TEACHER)
    counts = {}
    for name, path in (("teacher", weights), ("student", trainer.run_folder.best)):
        pipe, calls = Pipeline.from_pretrained("nano-x4", weights=path, device="cpu"), []
        denoise = pipe.denoiser.denoise
        pipe.denoiser.denoise = lambda *args, denoise=denoise, calls=calls: calls.append(1) or denoise(*args)
        image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        assert pipe(image, progress=False).shape == (64, 64, 3)
        counts[name] = len(calls)
    assert counts == {"teacher": 3, "student": 1}


def test_a_shallower_student_keeps_blocks_of_its_teacher_and_restores(photos, tmp_path, monkeypatch):
    spec = replace(TEACHER, denoiser=replace(SMALL, num_res_blocks=(3,)))
    deep, path = randomize(SwinUNet(spec.denoiser), 5), tmp_path / "teacher.safetensors"
    save_safetensors(deep, path, {"schedule": schedule_text(spec.schedule)})
    options = {"teacher": str(path), "fake_steps": 1, "num_res_blocks": [1]}
    config = make_config(photos, tmp_path, patch=16, steps=1, objective="distill", objective_options=options)
    trainer = Trainer(config, spec)
    assert same(state(trainer.objective._teacher), state(deep)) and same(
        state(trainer.objective.networks["fake"]), state(deep)
    )
    own, given = trainer.denoiser.output_blocks, deep.output_blocks
    assert len(own) == 2 and same(state(own[0]), state(given[0])) and same(state(own[1]), state(given[3]))
    assert trainer.run()
    monkeypatch.setitem(catalog.MODELS, "nano-x4", spec)
    for name in ("nano-x4", "nano-x4-1step"):
        pipe = Pipeline.from_pretrained(name, weights=trainer.run_folder.best, device="cpu")
        assert pipe.spec.denoiser == replace(SMALL, num_res_blocks=(1,), noise_channels=1)
        assert pipe.spec.schedule.num_steps == 1
    changed = replace(config, objective_options=options | {"num_res_blocks": [2]})
    with pytest.raises(ValueError, match=r"num_res_blocks was \[1\] and is now \[2\]"):
        Trainer(changed, spec).run()


def rewritten(path, folder, *, channels=0, name="other.safetensors", **metadata):
    """A copy of a teacher's weights with other input channels or metadata."""
    denoiser = SwinUNet(replace(SMALL, noise_channels=channels))
    save_safetensors(denoiser, folder / name, metadata)
    return folder / name


def test_wrong_teachers_are_refused(photos, tmp_path, weights):
    def refused(message, path=weights, spec=TEACHER, blocks=None, **changes):
        options = {"teacher": None if path is None else str(path), "num_res_blocks": blocks}
        config = make_config(photos, tmp_path / "run", objective="distill", objective_options=options, **changes)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            Trainer(config, spec)

    student = rewritten(weights, tmp_path, channels=1, name="student.safetensors")
    refused("takes 52 channels, but nano-x4 takes 51, and looks like a student of it; give the teacher's", student)
    refused("takes 53 channels, but nano-x4 takes 51; give", rewritten(weights, tmp_path, channels=2))
    schedule = schedule_text(replace(TEACHER.schedule, steps=15, kappa=2.0))
    other = rewritten(weights, tmp_path, schedule=schedule)
    refused("another schedule than nano-x4: steps 15 instead of 3, kappa 2.0 instead of 0.3; give its own", other)
    refused("another schedule than nano-x4: steps 4 instead of 3", rewritten(weights, tmp_path, model="realsr-x4-v3"))
    published = rewritten(weights, tmp_path, name="resshift_realsrx4_s15_v1.pth")
    refused("another schedule than nano-x4: steps 15 instead of 3", published)
    refused("does not exist", tmp_path / "none.pth")
    refused("no weights of mine are published; give --teacher FILE", None, replace(TEACHER, name="mine"))
    refused("distill needs a model of several steps as its teacher, and nano-x4-1step is none", spec=STUDENT)
    for blocks in ([2], [1, 1], [0], ["1"], [True], 1):
        refused("num_res_blocks is .*, expected 1 integers from 1 to the teacher's 1, one for each", blocks=blocks)
    refused("predicts x0 or the residual; nano-x4 predicts epsilon", spec=replace(TEACHER, prediction_type="epsilon"))
    assert not (tmp_path / "run").exists()


def test_the_embedded_weights_are_those_of_the_default_teacher():
    path = teachers.file_of(None, catalog.get("nano-x4"))
    assert path.name == "nano-x4.safetensors" and path == teachers.file_of(None, catalog.get("nano-x4-1step"))
