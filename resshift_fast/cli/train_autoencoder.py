"""`resshift-fast train-autoencoder`: train the autoencoder of a latent model on photos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resshift_fast.cli.options import shown as option
from resshift_fast.cli.train import conclude, start
from resshift_fast.core.files import expand_home

# Arguments that are settings of the objective, and not of the run.
OBJECTIVE = (
    *("lpips", "vgg", "lpips_weights", "beta", "disc_weight", "disc_start", "disc_loss", "disc_norm"),
    *("disc_channels", "disc_layers", "disc_lr"),
)
BETAS = (0.5, 0.9)  # of Adam, with less memory than usual, since the discriminator changes its loss


def train_autoencoder(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Training photos: folders, which are searched with those below them, or text files with one path on "
            "each line."
        ),
    ],
    run: Annotated[Path, option("Folder for checkpoints, log.csv and validation sheets.", "--run", "-o")],
    model: Annotated[
        str, option("Sizes of the autoencoder: vq-f4, vq-f8-face, vq-f4-nano, or a model whose autoencoder it is.")
    ] = "vq-f4",
    config_file: Annotated[
        Path | None,
        option("YAML file in the layout of the official code, for the sizes alone. Default: --model.", "--config"),
    ] = None,
    val: Annotated[Path | None, option("Validation photos: a folder or list file. Default: no validation.")] = None,
    init_from: Annotated[
        Path | None,
        option("Weights to start from: any file that --autoencoder takes, or a last.pt. Default: random weights."),
    ] = None,
    steps: Annotated[int, option("Optimizer steps of the whole run.")] = 50_000,
    batch_size: Annotated[int, option("Patches per step, of all processes together.")] = 8,
    accumulate: Annotated[
        int,
        option(
            "Parts of a process's patches that are computed one after the other, for less memory; each has its own "
            "weight of the adversarial loss."
        ),
    ] = 1,
    patch: Annotated[int | None, option("Side of a patch in pixels. Default: 128.")] = None,
    lr: Annotated[float, option("Peak learning rate.")] = 1e-4,
    min_lr: Annotated[float, option("Learning rate at the last step.")] = 1e-6,
    warmup: Annotated[int, option("Steps of linear warm-up.")] = 100,
    weight_decay: Annotated[float, option("AdamW's weight decay.")] = 0.0,
    grad_clip: Annotated[float, option("Gradient norm to clip to; 0: no clipping.")] = 1.0,
    ema_decay: Annotated[float, option("Decay of the moving average of the weights; 0: no average.")] = 0.0,
    lpips: Annotated[
        float, option("Weight of LPIPS beside the L1 error; 0: without LPIPS, which needs no weights of VGG16.")
    ] = 1.0,
    vgg: Annotated[
        Path | None, option("torchvision's VGG16 weights for LPIPS. Default: download them (553 MB).")
    ] = None,
    lpips_weights: Annotated[
        Path | None, option("Linear weights of LPIPS, or the lpips wheel. Default: those of the installed package.")
    ] = None,
    beta: Annotated[float, option("Weight of the commitment, which keeps the latent near the codebook.")] = 0.25,
    disc_weight: Annotated[
        float, option("Factor of the adversarial loss's adaptive weight; 0: no discriminator.")
    ] = 1.0,
    disc_start: Annotated[int, option("Step from which the discriminator is trained and used.")] = 10_000,
    disc_loss: Annotated[str, option("Loss of the discriminator: hinge or vanilla.")] = "hinge",
    disc_norm: Annotated[str, option("Norm of the discriminator: group or batch.")] = "group",
    disc_channels: Annotated[
        int, option("Channels of the discriminator's first layer, a multiple of 16 with group norm.")
    ] = 64,
    disc_layers: Annotated[
        int, option("Layers of the discriminator that halve the image; 3: it judges patches of 70 pixels.")
    ] = 3,
    disc_lr: Annotated[float | None, option("Peak learning rate of the discriminator. Default: --lr.")] = None,
    precision: Annotated[str, option("float32, or bfloat16 or float16 by autocast.")] = "float32",
    channels_last: Annotated[bool, option("Channels-last memory format.")] = True,
    compile_model: Annotated[
        bool, option("Compile the autoencoder with torch.compile. Default: no.", "--compile")
    ] = False,
    recompute: Annotated[
        bool, option("Compute activations again in the backward pass, for less memory and a third more time.")
    ] = False,
    device: Annotated[str, option("cpu, cuda, cuda:1, …; under torchrun, cuda is a GPU for each process.")] = "cpu",
    threads: Annotated[
        int | None, option("torch's threads on the CPU, at least 1. Default: torch's choice.", min=1)
    ] = None,
    workers: Annotated[int, option("Threads that prepare patches.")] = 1,
    seed: Annotated[int, option("Seed of weights and patches.")] = 0,
    cache_mb: Annotated[
        int, option("Memory of each process for photos that may be needed again, in MB; 0: read them every time.")
    ] = 500,
    max_downscale: Annotated[float, option("Largest factor by which a region is downscaled to a patch.")] = 4.0,
    recolour: Annotated[float, option("Probability, 0 to 1, of permuted channels and a changed exposure.")] = 0.0,
    log_every: Annotated[int, option("Steps between rows of the log.")] = 50,
    val_every: Annotated[int, option("Steps between validations.")] = 1000,
    val_limit: Annotated[int, option("Largest number of validation photos.")] = 16,
    val_side: Annotated[
        int, option("Side of the central squares of validation photos in pixels; 0: whole photos.")
    ] = 256,
    val_lpips: Annotated[
        Path | None,
        option("VGG16 weights in torchvision's format, with which LPIPS is measured too. Default: no LPIPS."),
    ] = None,
    val_metrics: Annotated[
        str,
        option("Further metrics by their names in pyiqa, which must be installed, such as niqe,musiq. Default: none."),
    ] = "",
    tensorboard: Annotated[bool, option("Also write the log for TensorBoard, where it is installed.")] = True,
    save_every: Annotated[int, option("Steps between checkpoints.")] = 1000,
    save_minutes: Annotated[float, option("Longest time between checkpoints, in minutes.")] = 10.0,
    resume: Annotated[bool, option("Continue from the run folder's last.pt.")] = True,
    changes: Annotated[
        list[str] | None,
        option(
            "Settings to continue with other values of, such as lr=1e-5,steps=90000,batch=16,precision=float32; "
            "they are noted in log.csv. May be repeated. Default: none.",
            "--override",
        ),
    ] = None,
) -> None:
    """Train the autoencoder of a latent model on photos: L1, LPIPS, a codebook and a patch discriminator.

    Its best.safetensors is what --autoencoder of `train` and `restore` takes. Ctrl-C saves the state; the same command
    continues from there. Started by torchrun, several processes train together.
    """
    settings = dict(locals())  # the arguments alone
    settings["compile"] = settings.pop("compile_model")
    for name in ("config_file", "threads", "resume", "changes"):
        del settings[name]
    conclude(run, lambda: _run(settings, config_file, threads, resume, ",".join(changes or ())))


def _run(settings: dict, config_file: Path | None, threads: int | None, resume: bool, changes: str) -> bool:
    """Train; returns whether the run is complete."""
    from resshift_fast.models import official_config
    from resshift_fast.models.autoencoder import AutoencoderConfig
    from resshift_fast.training.autoencoder import AutoencoderTrainer
    from resshift_fast.training.config import TrainConfig

    settings = {name: str(expand_home(value)) if isinstance(value, Path) else value for name, value in settings.items()}
    settings["data"] = tuple(str(expand_home(one)) for one in settings["data"])
    settings["val_metrics"] = tuple(filter(None, settings["val_metrics"].split(",")))
    options = {name: settings.pop(name) for name in OBJECTIVE}
    options = {name: value for name, value in options.items() if value is not None}
    sizes = None
    if config_file is not None:
        path = expand_home(config_file)
        described = official_config.read(path).first_stage
        if not isinstance(described, AutoencoderConfig):
            raise ValueError(f"{path} describes no autoencoder; it needs a section of this name")
        sizes, settings["model"] = described, path.stem
    config = TrainConfig(**settings, objective="vqgan", objective_options=options, betas=BETAS)
    return start(
        config.overridden(changes),
        lambda one: AutoencoderTrainer(one, sizes),
        threads=threads,
        resume=resume,
    )
