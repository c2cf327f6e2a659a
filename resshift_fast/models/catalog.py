"""Every model as data: sizes, schedule, conventions, weight files and licences.

The official file names and addresses are only here. Sources for the official models: arXiv 2403.07319 and the release
page of github.com/zsyOAOA/ResShift.
"""

from dataclasses import dataclass, replace
from itertools import product
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

from resshift_fast.core.names import nearest
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.images.tiling import Axis, plan_axis
from resshift_fast.models import cost
from resshift_fast.models.sizes import (
    AutoencoderConfig,
    DenoiserConfig,
    InpaintUNetConfig,
    RRDBConfig,
    SpaceToDepthConfig,
    SwinUNetConfig,
)
from resshift_fast.weights.published import OFFICIAL_LICENCE as OFFICIAL_LICENCE
from resshift_fast.weights.published import WeightFile as WeightFile

if TYPE_CHECKING:
    from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder
    from resshift_fast.models.inpaint_unet import InpaintUNet
    from resshift_fast.models.rrdb import RRDBDenoiser
    from resshift_fast.models.swin_unet import SwinUNet

    Network = SwinUNet | RRDBDenoiser | InpaintUNet  # the denoisers

RELEASE = "https://github.com/zsyOAOA/ResShift/releases/download/v2.0/"
CONDITIONS = ("image", "latent", "enlarged")
Entry = TypeVar("Entry")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One restoration model.

    Args:
        name, summary: its name, and its purpose in one line.
        scale: output side / input side.
        denoiser, first_stage, schedule: sizes of the parts.
        prediction_type: what the denoiser predicts, one of `coefficients.PREDICTION_TYPES`.
        clamp_x0: clamp x̂_0 to [−1, 1] at every step; for first stages whose latent is the image.
        pad_multiple: input sides are padded to a multiple of this, in input pixels.
        tile, overlap: default tile side and overlap in input pixels.
        needs_mask: whether it is an inpainting model, which needs a mask.
        filled: whether an inpainting model is given unknown pixels filled in smoothly instead of black ones; see
            `models.filling`.
        condition: what the denoiser is given of the low-quality image, one of `CONDITIONS`: the image itself; its
            latent y; or the enlarged image, reduced bicubically to the latent's size.
        quantize: whether the result's latent is quantized before it is decoded.
        prior_first: whether torch's generator draws the prior before the channels of noise; see `torch_noise`.
        weights, autoencoder_weights: files; None if there is nothing to load or nothing is published.
    """

    name: str
    summary: str
    scale: int
    denoiser: DenoiserConfig
    first_stage: AutoencoderConfig | SpaceToDepthConfig
    schedule: Schedule
    prediction_type: str = "x0"
    clamp_x0: bool = False
    pad_multiple: int = 64
    tile: int = 512
    overlap: int = 64
    needs_mask: bool = False
    filled: bool = False
    condition: str = "image"
    quantize: bool = True
    prior_first: bool = False
    weights: WeightFile | None = None
    autoencoder_weights: WeightFile | None = None

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            expected = ", ".join(CONDITIONS)
            raise ValueError(f"{self.name}: condition is {self.condition!r}, expected one of {expected}")

    @property
    def licence(self) -> str:
        """Licence of the denoiser's weights, or a note that none are published."""
        return self.weights.licence if self.weights else "no weights published"

    @property
    def latent_per_input(self) -> float:
        """Latent pixels along a side for one input pixel."""
        return self.scale / self.first_stage.factor

    def plan_tiles(
        self,
        height: int,
        width: int,
        tile: int | None = None,
        overlap: int | None = None,
        *,
        cheapest: bool = False,
    ) -> tuple[Axis, Axis]:
        """Where the tiles of an image lie.

        Args:
            height, width: the image's sides in input pixels.
            tile: largest side of a tile in input pixels, rounded down to a multiple of `pad_multiple`; None takes the
                model's default.
            overlap: input pixels that neighbours share; None takes the model's default, at most a quarter of a tile.
            cheapest: where no tile is given, choose sides up to the default with the least `cost`, as long as the
                overlap is at most a quarter of them: many small tiles share more pixels, large ones cost more in an
                autoencoder's attention.

        Returns:
            (rows, columns).

        Raises:
            ValueError: if tile is below `pad_multiple`, or overlap leaves nothing of a tile.
        """
        multiple = self.pad_multiple
        if tile is not None and tile < multiple:
            raise ValueError(f"tile is {tile}, expected at least {multiple} input pixels, the smallest for {self.name}")
        cheapest = cheapest and tile is None
        tile = (self.tile if tile is None else tile) // multiple * multiple
        overlap = min(self.overlap, tile // 4) if overlap is None else overlap
        align = max(1, int(self.denoiser.downsampling / self.latent_per_input))
        sides = [tile, *(side for side in range(multiple, tile, multiple) if cheapest and 4 * overlap <= side)]
        rows, columns = (
            [plan_axis(length, side, overlap, multiple, align) for side in sides] for length in (height, width)
        )
        return min(product(rows, columns), key=lambda plan: self.cost_of(*plan))

    def cost_of(self, rows: Axis, columns: Axis) -> float:
        """What an image in these tiles costs on a CPU, in weighted multiplications; see `models.cost`."""
        tiles, pixels = len(rows.starts) * len(columns.starts), rows.tile * columns.tile * self.latent_per_input**2
        return tiles * cost.of_model(self).of_tile(pixels)


DISTILLED = "distilled-x"  # begins the names of the students of others that tell their conventions by metadata


def _official(filename: str) -> WeightFile:
    return WeightFile(filename, RELEASE + filename)


def _embedded(name: str, origin: str = "") -> WeightFile:
    licence = f"CC BY-SA 4.0 (trained from free photographs{origin}, see weights/{name}.md)"
    return WeightFile(f"{name}.safetensors", None, licence=licence)


VQ_F4 = AutoencoderConfig()
VQ_F8_FACE = AutoencoderConfig(
    channels=64, channel_mult=(1, 2, 4, 8), num_res_blocks=(1, 2, 3, 4), latent_channels=8, codebook_size=4096
)
# A million parameters, so that a CPU can train it.
VQ_F4_NANO = AutoencoderConfig(channels=32, channel_mult=(1, 2, 2), num_res_blocks=(1, 1, 1), codebook_size=1024)
AUTOENCODERS = {"vq-f4": VQ_F4, "vq-f8-face": VQ_F8_FACE, "vq-f4-nano": VQ_F4_NANO}
VQ_F4_WEIGHTS = _official("autoencoder_vq_f4.pth")
FOUR_STEPS = Schedule(steps=4, kappa=2.0, power=0.3, min_noise_level=0.2, etas_end=0.99)
FIFTEEN_STEPS = Schedule(steps=15, kappa=2.0, power=0.3, min_noise_level=0.04, etas_end=0.99)
# One step from nearly y itself, for models that are given nothing to invent.
ONE_SHIFT = Schedule(steps=4, kappa=0.02, power=0.3, min_noise_level=0.2, etas_end=0.99, one_step=True)
REALSR = SwinUNetConfig()
REALSR_X2 = SwinUNetConfig(lq_size=128)
INPAINT = SwinUNetConfig(lq_size=256, cond_mask=True)
FACEIR = SwinUNetConfig(in_channels=8, out_channels=8, lq_size=512)
NANO = SwinUNetConfig(
    image_size=64,
    in_channels=48,
    out_channels=48,
    model_channels=64,
    num_res_blocks=(2, 1),
    attention_resolutions=(),
    channel_mult=(1, 1.5),
    num_head_channels=32,
    swin_depth=2,
    swin_embed_dim=64,
    mlp_ratio=2.0,
)
# Of twice the resolution: a latent pixel has the channels of 2×2 pixels, so that JPEG's blocks and noise are seen well.
PHOTO_X1 = replace(NANO, in_channels=12, out_channels=12, lq_size=128)
PHOTO_X4 = RRDBConfig()
PHOTO_INPAINT = InpaintUNetConfig()
# Written down, since to count them is to build the networks, for which torch has to be loaded.
_PARAMETERS = {
    NANO: 2_261_396,
    PHOTO_X1: 2_241_680,
    PHOTO_INPAINT: 3_883_948,
    PHOTO_X4: 5_934_275,
    REALSR: 118_593_583,
    replace(REALSR, noise_channels=1): 118_595_023,
    REALSR_X2: 118_640_431,
    INPAINT: 118_714_399,
    FACEIR: 118_931_604,
    VQ_F4: 55_322_782,
    VQ_F8_FACE: 77_009_115,
    SpaceToDepthConfig(): 0,
    SpaceToDepthConfig(factor=2): 0,
}


def _realsr(name: str, summary: str, schedule: Schedule, filename: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        summary=summary,
        scale=4,
        denoiser=REALSR,
        first_stage=VQ_F4,
        schedule=schedule,
        tile=256,
        overlap=32,
        weights=_official(filename),
        autoencoder_weights=VQ_F4_WEIGHTS,
    )


def _small(name: str, summary: str, sizes: DenoiserConfig, *, factor: int, **others: Any) -> ModelSpec:
    """A model of this project for photos at scale 1, with one step, over blocks of factor × factor pixels."""
    return ModelSpec(
        name=name,
        summary=summary,
        scale=1,
        denoiser=sizes,
        first_stage=SpaceToDepthConfig(factor=factor),
        schedule=ONE_SHIFT,
        prediction_type="residual",
        clamp_x0=True,
        **others,
    )


def _distilled(scale: int) -> ModelSpec:
    """A one-step student of Hugging Face's sorryhyun/Distilled-ResShift-4x and -2x.

    Its weights are given as a file, whose metadata may name another condition; see `loading.trained_as`.
    """
    multiple = 64 * VQ_F4.factor // scale
    return ModelSpec(
        name=f"{DISTILLED}{scale}",
        summary=f"×{scale} real-world super-resolution, one step, for the file of Distilled-ResShift-{scale}x",
        scale=scale,
        denoiser=replace(REALSR, noise_channels=1),
        first_stage=VQ_F4,
        schedule=replace(FIFTEEN_STEPS, one_step=True, unit_prior=True),
        pad_multiple=multiple,
        tile=4 * multiple,
        overlap=multiple // 2,
        condition="latent",
        quantize=False,
        prior_first=True,
        autoencoder_weights=VQ_F4_WEIGHTS,
    )


def _inpaint(name: str, summary: str, filename: str, autoencoder: WeightFile) -> ModelSpec:
    return ModelSpec(
        name=name,
        summary=summary,
        scale=1,
        denoiser=INPAINT,
        first_stage=VQ_F4,
        schedule=FOUR_STEPS,
        pad_multiple=256,
        tile=512,
        overlap=128,
        needs_mask=True,
        weights=_official(filename),
        autoencoder_weights=autoencoder,
    )


_SPECS = (
    ModelSpec(
        name="photo-x4",
        summary="×4 super-resolution of photos, embedded, one step: sharp, with texture that may be invented",
        scale=4,
        denoiser=PHOTO_X4,
        first_stage=SpaceToDepthConfig(),
        schedule=Schedule(steps=4, kappa=0.25, power=0.3, min_noise_level=0.2, etas_end=0.99, one_step=True),
        clamp_x0=True,
        pad_multiple=4,
        tile=192,
        overlap=16,
        weights=_embedded("photo-x4", origin=" and Real-ESRGAN's weights, which are BSD-3-Clause"),
    ),
    ModelSpec(
        name="nano-x4",
        summary="×4 super-resolution, embedded, fast on a CPU; mild restoration with high fidelity",
        scale=4,
        denoiser=NANO,
        first_stage=SpaceToDepthConfig(),
        schedule=Schedule(steps=4, kappa=0.25, power=0.3, min_noise_level=0.2, etas_end=0.99),
        prediction_type="residual",
        clamp_x0=True,
        pad_multiple=16,
        tile=192,
        overlap=16,
        weights=_embedded("nano-x4"),
    ),
    _small(
        "photo-x1",
        "repair of photos without enlarging: noise and marks of scans, strong JPEG a little",
        PHOTO_X1,
        factor=2,
        pad_multiple=32,
        overlap=32,
        weights=_embedded("photo-x1"),
    ),
    _small(
        "photo-inpaint",
        "inpainting of photos, small; smooth where much is missing",
        PHOTO_INPAINT,
        factor=2,
        pad_multiple=32,
        overlap=128,
        needs_mask=True,
        filled=True,
        weights=_embedded("photo-inpaint"),
    ),
    _realsr("realsr-x4-v1", "×4 real-world super-resolution, 15 steps", FIFTEEN_STEPS, "resshift_realsrx4_s15_v1.pth"),
    _realsr("realsr-x4-v2", "×4 real-world super-resolution, 15 steps", FIFTEEN_STEPS, "resshift_realsrx4_s15_v2.pth"),
    _realsr("realsr-x4-v3", "×4 real-world super-resolution, 4 steps", FOUR_STEPS, "resshift_realsrx4_s4_v3.pth"),
    ModelSpec(
        name="realsr-x2",
        summary="×2 real-world super-resolution, architecture only: no weights are published",
        scale=2,
        denoiser=REALSR_X2,
        first_stage=VQ_F4,
        schedule=FOUR_STEPS,
        pad_multiple=128,
        tile=512,
        autoencoder_weights=VQ_F4_WEIGHTS,
    ),
    _realsr(
        "bicsr-x4", "×4 super-resolution of bicubically reduced images, 4 steps", FOUR_STEPS, "resshift_bicsrx4_s4.pth"
    ),
    _distilled(4),
    _distilled(2),
    _inpaint("inpaint-imagenet", "inpainting of photos", "resshift_inpainting_imagenet_s4.pth", VQ_F4_WEIGHTS),
    _inpaint(
        "inpaint-face",
        "inpainting of aligned faces",
        "resshift_inpainting_face_s4.pth",
        _official("celeba256_vq_f4_dim3_face.pth"),
    ),
    ModelSpec(
        name="faceir",
        summary="restoration of aligned 512×512 faces",
        scale=1,
        denoiser=FACEIR,
        first_stage=VQ_F8_FACE,
        schedule=FOUR_STEPS,
        pad_multiple=512,
        tile=512,
        weights=_official("resshift_faceir_s4.pth"),
        autoencoder_weights=_official("ffhq512_vq_f8_dim8_face.pth"),
    ),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
DEFAULT_MODEL = "photo-x4"
DEFAULT_INPAINTING = "photo-inpaint"
ONE_STEP = "-1step"  # ends the names of one-step students


def default_model(masked: bool = False, weights: str | PathLike[str] | None = None) -> str:
    """The name of the model that is taken where none is named.

    Args:
        masked: whether a mask is given.
        weights: a file of weights. Those of a training name their model, which is taken; otherwise it is an embedded
            one.
    """
    found = None if weights is None else _named_by(weights)
    if found is not None and found.needs_mask == masked:
        return found.name
    return DEFAULT_INPAINTING if masked else DEFAULT_MODEL


def _named_by(weights: str | PathLike[str]) -> ModelSpec | None:
    """The model that the metadata of a file name; None without any, or for a file that cannot be read."""
    from resshift_fast.weights.checkpoints import CheckpointError, read_metadata

    try:
        return get(read_metadata(weights).get("model", ""))
    except (OSError, CheckpointError, ValueError):
        return None


def get(name: str) -> ModelSpec:
    """The model called `name`; NAME-1step is the one-step student of NAME.

    Raises:
        ValueError: for an unknown name; the message gives the nearest one that has weights, and all others.
    """
    teacher = str(name).removesuffix(ONE_STEP)
    if name not in MODELS and teacher != name and teacher in MODELS and not MODELS[teacher].schedule.one_step:
        return one_step(MODELS[teacher])
    return _found(MODELS, name, "model", [spec.name for spec in MODELS.values() if spec.weights is not None])


def get_autoencoder(name: str) -> AutoencoderConfig:
    """The sizes of the autoencoder called `name`, or of the one of a model.

    Raises:
        ValueError: for an unknown name, or a model without an autoencoder.
    """
    if name not in MODELS:
        return _found(AUTOENCODERS, name, "autoencoder", list(AUTOENCODERS))
    sizes = MODELS[name].first_stage
    if not isinstance(sizes, AutoencoderConfig):
        raise ValueError(f"{name} has no autoencoder; autoencoders: {', '.join(AUTOENCODERS)}")
    return sizes


def _found(table: dict[str, Entry], name: str, kind: str, usable: list[str]) -> Entry:
    """The entry called `name`; the error for an unknown one gives the nearest of the usable names, and all."""
    if name in table:
        return table[name]
    near = nearest(str(name).strip().lower(), usable)
    hint = f"did you mean {near!r}? " if near else ""
    if kind == "model" and "x2" in str(name).lower():
        hint += "restore --scale 2 enlarges twice; "
    raise ValueError(f"unknown {kind} {name!r}; {hint}{kind}s: {', '.join(table)}")


def unet_of(spec: ModelSpec) -> SwinUNetConfig:
    """The sizes of a model's U-Net.

    Raises:
        ValueError: if its denoiser is another network.
    """
    if not isinstance(spec.denoiser, SwinUNetConfig):
        raise ValueError(f"the denoiser of {spec.name} is no U-Net, and so it is neither a teacher nor a student")
    return spec.denoiser


def one_step(spec: ModelSpec) -> ModelSpec:
    """The one-step student of a model (arXiv 2503.13358).

    It predicts x_0 once, from x_T = y + κ √η_T ε, the low-quality image and a channel of noise. No weights are
    published here.
    """
    return replace(
        spec,
        name=spec.name + ONE_STEP,
        summary=f"one-step student of {spec.name}",
        denoiser=replace(unet_of(spec), noise_channels=1),
        schedule=replace(spec.schedule, one_step=True),
        weights=None,
    )


def teacher_of(student: ModelSpec) -> ModelSpec:
    """The model whose one-step student this is, but for its summary and its weights."""
    return replace(
        student,
        name=student.name.removesuffix(ONE_STEP),
        denoiser=replace(unet_of(student), noise_channels=0),
        schedule=replace(student.schedule, one_step=False),
    )


def parameters(sizes: DenoiserConfig | AutoencoderConfig | SpaceToDepthConfig) -> int | None:
    """Number of parameters of a network with these sizes; None if it is no network of the catalogue."""
    return _PARAMETERS.get(sizes)


def build_denoiser(spec: ModelSpec) -> "Network":
    """The denoiser of the model's sizes with fresh weights."""
    if isinstance(spec.denoiser, RRDBConfig):
        from resshift_fast.models.rrdb import RRDBDenoiser

        return RRDBDenoiser(spec.denoiser)
    if isinstance(spec.denoiser, InpaintUNetConfig):
        from resshift_fast.models.inpaint_unet import InpaintUNet

        return InpaintUNet(spec.denoiser)
    from resshift_fast.models.swin_unet import SwinUNet

    return SwinUNet(spec.denoiser)


def build_first_stage(spec: ModelSpec) -> "VQAutoencoder | SpaceToDepth":
    """A `VQAutoencoder` or `SpaceToDepth` of the model's sizes with fresh weights."""
    from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder

    if isinstance(spec.first_stage, SpaceToDepthConfig):
        return SpaceToDepth(spec.first_stage)
    return VQAutoencoder(spec.first_stage)
