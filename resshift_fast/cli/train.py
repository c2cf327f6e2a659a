"""`resshift-fast train`: train a model on photos."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resshift_fast.cli import console
from resshift_fast.cli.options import parsed_by
from resshift_fast.cli.options import shown as _option
from resshift_fast.core.files import expand_home

if TYPE_CHECKING:
    from resshift_fast.training.config import TrainConfig
    from resshift_fast.training.loop import Training

# Options of the command that are settings of an objective.
OPTIONS = {"official": {"mse", "lpips", "vgg", "lpips_weights"}}
OPTIONS["distill"] = OPTIONS["official"] | {"teacher", "num_res_blocks", "fake_steps", "adversarial"}
OPTIONS["distill"] |= {"student_timesteps", "normalize"}
DISTILL_BETAS = (0.9, 0.95)  # AdamW's decay rates of the objective distill, arXiv 2503.13358, appendix C


def _integers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"expected integers separated by commas, such as 1,1, got {text!r}") from None


def train(
    ctx: typer.Context,
    run: Annotated[Path, _option("Folder for checkpoints, log.csv and validation sheets.", "--run", "-o")],
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Training photos: folders, which are searched with those below them, or text files with one path on "
            "each line. Required unless the file of --config names some that exist.",
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        _option(
            "YAML file with the model and settings to use where no option is given: a recipe of this project, or in "
            "the layout of the official code, whose model --model replaces. Default: none.",
            "--config",
        ),
    ] = None,
    val: Annotated[Path | None, _option("Validation photos: a folder or list file. Default: no validation.")] = None,
    val_lq: Annotated[
        Path | None,
        _option(
            "Their low-quality versions: a folder or list file, with equal names or names ending in xSCALE. "
            "Default: made from them.",
        ),
    ] = None,
    model: Annotated[str, _option("Model to train.")] = "nano-x4",
    init_from: Annotated[
        Path | None,
        _option(
            "Weights to start from: any file that `restore` loads, a last.pt, or the name of a model, such as nano-x4. "
            "Default: random weights."
        ),
    ] = None,
    autoencoder: Annotated[
        Path | None, _option("Weights of the model's autoencoder, if it has one. Default: the published ones.")
    ] = None,
    steps: Annotated[int, _option("Optimizer steps of the whole run.")] = 10_000,
    batch_size: Annotated[int, _option("Patches per step, of all processes together.")] = 8,
    accumulate: Annotated[
        int, _option("Parts of a process's patches that are computed one after the other, for less memory.")
    ] = 1,
    patch: Annotated[
        int | None, _option("Side of a high-quality patch in pixels. Default: 128, or the least that the model takes.")
    ] = None,
    lr: Annotated[float, _option("Peak learning rate.")] = 6e-4,
    min_lr: Annotated[float, _option("Learning rate at the last step.")] = 1e-6,
    warmup: Annotated[int, _option("Steps of linear warm-up.")] = 100,
    weight_decay: Annotated[float, _option("AdamW's weight decay.")] = 0.0,
    grad_clip: Annotated[float, _option("Gradient norm to clip to; 0: no clipping.")] = 1.0,
    ema_decay: Annotated[float, _option("Decay of the moving average of the weights.")] = 0.999,
    objective: Annotated[
        str,
        _option(
            "rollout; official: the squared error of the published models, and LPIPS; perceptual: pixels, features "
            "and a discriminator, weighted as a recipe says; or distill: train a one-step student of --model. "
            "--loss, --first-step-weight and --rollout are settings of rollout, the last two of perceptual too."
        ),
    ] = "rollout",
    teacher: Annotated[
        Path | None, _option("Weights of the model that distill trains a student of. Default: the published ones.")
    ] = None,
    num_res_blocks: Annotated[
        Any,  # list[int] | None, which typer would take for an option that is given several times
        _option(
            "Residual blocks of distill's student at each level, from the largest images on: 1,1 instead of nano-x4's "
            "2,1, for instance. Fewer take less time. Default: those of --model.",
            metavar="N,N",
            parser=parsed_by(_integers),
        ),
    ] = None,
    fake_steps: Annotated[
        int | None, _option("Steps of distill's fake model before each one of the student. Default: 5.")
    ] = None,
    adversarial: Annotated[
        float | None,
        _option("Weight of distill's adversarial loss; 0: train without a discriminator. Default: 0.003."),
    ] = None,
    student_timesteps: Annotated[
        int | None,
        _option(
            "Timesteps that distill trains the student at, evenly spaced; 1: only the one it is used at. Default: 4."
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        _option("Divide distill's loss of each picture by the teacher's mean absolute error. Default: yes."),
    ] = None,
    mse: Annotated[
        float | None,
        _option("Weight of the squared error. Default: 1; for distill 0 where LPIPS has a weight."),
    ] = None,
    lpips: Annotated[
        float | None,
        _option(
            "Weight of LPIPS. Default: 0, 1 or 10 as the published model, 0 for other models; for distill 2 for models "
            "with an autoencoder, else 0."
        ),
    ] = None,
    vgg: Annotated[
        Path | None, _option("torchvision's VGG16 weights for LPIPS. Default: download them (553 MB).")
    ] = None,
    lpips_weights: Annotated[
        Path | None, _option("Linear weights of LPIPS, or the lpips wheel. Default: those of the installed package.")
    ] = None,
    loss: Annotated[str, _option("l1, mse, charbonnier or psnr (10·log10 of the mse).")] = "l1",
    loss_floor: Annotated[float, _option("What psnr adds to the mse of values in -1 to 1.")] = 1e-3,
    first_step_weight: Annotated[
        float, _option("Probability, 0 to 1, that a patch trains the chain's first step.")
    ] = 0.4,
    rollout: Annotated[
        float, _option("Probability, 0 to 1, that a batch uses the network's own estimate of x0 for x_t.")
    ] = 1.0,
    degradation: Annotated[
        str,
        _option(
            "How low-quality patches are made: mixture, second_order (Real-ESRGAN), bicubic, face (GFPGAN) or masks "
            "(inpainting)."
        ),
    ] = "mixture",
    clean: Annotated[
        float, _option("Share, 0 to 1, of purely bicubic low-quality patches of mixture; the rest are degraded.")
    ] = 0.35,
    precision: Annotated[str, _option("float32, or bfloat16 or float16 by autocast.")] = "float32",
    channels_last: Annotated[bool, _option("Channels-last memory format.")] = True,
    compile_model: Annotated[
        bool, _option("Compile the denoiser with torch.compile. Default: no.", "--compile")
    ] = False,
    recompute: Annotated[
        bool, _option("Compute activations again in the backward pass, for less memory and a third more time.")
    ] = False,
    device: Annotated[str, _option("cpu, cuda, cuda:1, …; under torchrun, cuda is a GPU for each process.")] = "cpu",
    threads: Annotated[
        int | None, _option("torch's threads on the CPU, at least 1. Default: torch's choice.", min=1)
    ] = None,
    workers: Annotated[int, _option("Threads that prepare patches.")] = 1,
    seed: Annotated[int, _option("Seed of weights, patches and noise.")] = 0,
    cache_mb: Annotated[
        int, _option("Memory of each process for photos that may be needed again, in MB; 0: read them every time.")
    ] = 500,
    max_downscale: Annotated[float, _option("Largest factor by which a region is downscaled to a patch.")] = 4.0,
    recolour: Annotated[float, _option("Probability, 0 to 1, of permuted channels and a changed exposure.")] = 0.3,
    log_every: Annotated[int, _option("Steps between rows of the log.")] = 50,
    val_every: Annotated[int, _option("Steps between validations.")] = 1000,
    val_limit: Annotated[int, _option("Largest number of validation photos.")] = 16,
    val_side: Annotated[
        int, _option("Side of the central squares of validation photos in pixels; 0: whole photos.")
    ] = 256,
    val_lpips: Annotated[
        Path | None,
        _option("VGG16 weights in torchvision's format, with which LPIPS is measured too. Default: no LPIPS."),
    ] = None,
    val_metrics: Annotated[
        str, _option("Further metrics by their names in pyiqa, which must be installed, such as niqe,musiq.")
    ] = "",
    tensorboard: Annotated[bool, _option("Also write the log for TensorBoard, where it is installed.")] = True,
    save_every: Annotated[int, _option("Steps between checkpoints.")] = 1000,
    save_minutes: Annotated[float, _option("Longest time between checkpoints, in minutes.")] = 10.0,
    resume: Annotated[bool, _option("Continue from the run folder's last.pt.")] = True,
    changes: Annotated[
        list[str] | None,
        _option(
            "Settings to continue with other values of, such as lr=1e-4,steps=20000,batch=16,precision=float32; "
            "they are noted in log.csv. May be repeated. Default: none.",
            "--override",
        ),
    ] = None,
) -> None:
    """Train a model on photos. Ctrl-C saves the state; the same command continues from there.

    A setting that changes the training must be the same when it continues, unless --override names it. Started by
    torchrun, several processes train together.
    """
    # locals() has only the arguments here; those that are settings of the run have the setting's name.
    settings = dict(locals())
    settings["compile"] = settings.pop("compile_model")
    # Compared by name, since the module of this enumeration depends on typer's version.
    given = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    settings["given"] = {"compile" if name == "compile_model" else name for name in given}
    for name in ("ctx", "clean", "threads", "resume", "changes"):
        del settings[name]
    conclude(run, lambda: _run(settings, clean, threads, resume, ",".join(changes or ())))


def conclude(run: Path, training: Callable[[], bool]) -> None:
    """Run a training that returns whether it is complete; warnings and errors are one line each.

    Raises:
        typer.Exit: with code 1 for an error and 130 for a training that was stopped.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: console.say(f"warning: {console.one_line(message)}")
        try:
            finished = training()
        except Exception as error:
            console.report(error, smaller="--accumulate, --recompute, a smaller --patch or --precision bfloat16")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    if not finished:
        raise typer.Exit(130)
    if os.environ.get("RANK", "0") == "0":
        console.say(f"done: {run / 'best.safetensors'}")


def start(config: TrainConfig, make: Callable[[TrainConfig], Training], *, threads: int | None, resume: bool) -> bool:
    """Make a trainer and run it; returns whether the training is complete.

    Raises:
        FileExistsError: if the run folder has a state that must not be continued.
    """
    import torch

    last = Path(config.run) / "last.pt"
    if not resume and last.exists():
        raise FileExistsError(f"{last} exists and --no-resume was given; choose another --run folder")
    if threads is not None:
        torch.set_num_threads(threads)
    trainer = make(config)
    try:
        return trainer.run()
    finally:
        trainer.processes.leave()


def _run(settings: dict, clean: float, threads: int | None, resume: bool, changes: str) -> bool:
    """Train; returns whether the run is complete."""
    from resshift_fast.training.config import TrainConfig
    from resshift_fast.training.degradations import Mixture
    from resshift_fast.training.trainer import Trainer

    settings["val_metrics"] = tuple(filter(None, settings["val_metrics"].split(",")))
    spec, settings = _described(settings)
    config = TrainConfig(**({"mixture": Mixture(clean=clean)} | settings)).overridden(changes)
    return start(
        config, lambda one: Trainer(one) if spec is None else Trainer(one, spec), threads=threads, resume=resume
    )


def _read(path: str, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model, None if the settings name it, and the settings of a recipe or of an official file.

    Args:
        path: the YAML file.
        named: options that come before an official file's entries, `model` and `batch_size`.
    """
    from resshift_fast.models.official_config import load
    from resshift_fast.training import official_config, recipe

    tree = load(Path(path))
    if recipe.is_recipe(tree):
        return None, recipe.read(tree, path)
    training = official_config.read(path, **named)
    if training.without_effect:
        console.say(f"{path}: without effect here: {', '.join(training.without_effect)}")
    return training.spec, training.settings


def _described(settings: dict) -> tuple[Any, dict]:
    """The model and the settings of --config where no option was given; without a file the model is None."""
    settings = {name: str(expand_home(value)) if isinstance(value, Path) else value for name, value in settings.items()}
    given, path = settings.pop("given"), settings.pop("config_file")
    options = {name: settings.pop(name) for name in OPTIONS["distill"]}
    options = {name: value for name, value in options.items() if value is not None}
    settings["data"] = tuple(str(expand_home(one)) for one in settings["data"] or ())
    spec = None
    described: dict[str, Any] = {}
    if path is not None:
        spec, described = _read(path, {name: settings[name] for name in ("model", "batch_size") if name in given})
        settings["degradation_options"] = {} if "degradation" in given else described.get("degradation_options", {})
        taken = described.keys() - given - {"objective_options", "degradation_options"}
        settings |= {name: described[name] for name in taken}
    if not settings["data"]:
        raise ValueError("no training photos; give a folder or a list file")
    for name in sorted(options.keys() - OPTIONS.get(settings["objective"], set())):
        needed = " or ".join(objective for objective, names in OPTIONS.items() if name in names)
        raise ValueError(f"--{name.replace('_', '-')} needs --objective {needed}")
    own = {} if "objective" in given else described.get("objective_options", {})
    settings["objective_options"] = own | options
    if settings["objective"] == "distill" and ("objective" in given or "betas" not in described):
        settings["betas"] = DISTILL_BETAS
    return spec, settings
