"""Image in, image out: puts images, tiling, networks and weights together."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from resshift_fast import backends, images
from resshift_fast.core import devices, dtypes, forks
from resshift_fast.core.memory import ResultTooLargeError, is_out_of_memory
from resshift_fast.diffusion.noise import check_seed
from resshift_fast.images.batches import Job, Tile, crop, crop_mask, needs_restoring, plan_batches, shape_of
from resshift_fast.images.sources import Source, sources_of
from resshift_fast.images.tiling import Axis, Blender
from resshift_fast.models import catalog, loading
from resshift_fast.models.catalog import ModelSpec
from resshift_fast.models.filling import fill_photo
from resshift_fast.models.layers import Module, prepack_weights_
from resshift_fast.restoration import compilation, cores, precompilation
from resshift_fast.restoration.model import Restoration
from resshift_fast.restoration.progress import Progress
from resshift_fast.restoration.sampler import torch_noise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOISES = ("field", "torch")
_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Unpack

    from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder
    from resshift_fast.models.catalog import Network
    from resshift_fast.restoration import inputs


class Pipeline:
    """A restoration model, ready to run; may be used from several threads at once.

    Args:
        spec: the model's entry in the catalogue.
        denoiser, first_stage: its networks with their weights.
        device: where they run.
        dtype: what they run in; the chain itself is float32.
        graphs: on CUDA, run batches through a CUDA graph from the second one of a shape on, which saves the launch
            overhead of every kernel. A graph holds the addresses of the networks' weights: their values may change in
            place, but replaced tensors need a new pipeline. What depends only on the weights is derived once on CUDA,
            and again when they have changed; after a change through `.data` call `restoration.prepare(changed=True)`.

    Attributes:
        spec, denoiser, first_stage, device, dtype: as given.
    """

    def __init__(
        self,
        spec: ModelSpec,
        denoiser: Network,
        first_stage: VQAutoencoder | SpaceToDepth,
        device: torch.device,
        dtype: torch.dtype,
        *,
        graphs: bool = True,
    ):
        forks.prepare()
        self.spec, self.device, self.dtype = spec, device, dtype
        self.denoiser = _prepared(denoiser, device, dtype)
        self.first_stage = _prepared(first_stage, device, dtype)
        self.restoration = Restoration(spec, self.denoiser, self.first_stage)
        precompilation.prepare_verification(device, dtype)
        backends.verify(device, dtype)  # compiled and captured code can only read the verdicts
        self._compiled: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._tunes = False  # whether calls with new shapes autotune their kernels
        self._graphs: compilation.RepeatedGraphs | None = None
        if graphs and device.type == "cuda":
            self._graphs = compilation.RepeatedGraphs(self.restoration)

    @classmethod
    def from_pretrained(
        cls,
        name: str | None = None,
        *,
        weights: inputs.Path | None = None,
        autoencoder: inputs.Path | None = None,
        random_weights: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = torch.float32,
        graphs: bool = True,
        progress: bool = True,
    ) -> Pipeline:
        """Build a model of the catalogue and load its weights, downloading them on first use.

        Args:
            name: see `catalog.get`; None takes the model that the weights name, without any the embedded photo-x4.
            weights, autoencoder: files to load instead of the published ones. Weights of a one-step student of the
                model are recognized by their channel of noise; `spec` is then the student's.
            random_weights: load nothing; for tests and measurements.
            device: None or "auto" takes CUDA if it is available, else the CPU; "gpu" is CUDA.
            dtype: torch.float32, bfloat16 or float16, or a name of one, such as "bf16"; "auto" takes bfloat16 on GPUs
                that are fast with it.
            graphs: as in `Pipeline`: CUDA graphs from the second batch of a shape on.
            progress: show a bar while downloading.

        Raises:
            ValueError: unknown model, device or dtype, a model without published weights, or a file that does not
                fit (`checkpoints.CheckpointError`).
            FileNotFoundError, OSError: a file that cannot be read or downloaded (`download.DownloadError`).
        """
        spec = catalog.get(catalog.default_model(weights=weights) if name is None else name)
        return cls._build(spec, weights, autoencoder, random_weights, device, dtype, graphs, progress)

    @classmethod
    def from_config(
        cls,
        config: inputs.Path,
        *,
        weights: inputs.Path | None = None,
        autoencoder: inputs.Path | None = None,
        random_weights: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = torch.float32,
        graphs: bool = True,
    ) -> Pipeline:
        """Build the model that a YAML file of the official training code describes.

        Args:
            config: the file; see `official_config.read`.
            weights, autoencoder: files with the trained weights, needed unless random_weights is set.
            random_weights, device, dtype, graphs: as in `from_pretrained`.

        Raises:
            ValueError, OSError: as in `from_pretrained`, and for a configuration that is not supported.
        """
        from resshift_fast.models import official_config

        spec = official_config.read(config)
        return cls._build(spec, weights, autoencoder, random_weights, device, dtype, graphs, False)

    @classmethod
    def _build(
        cls,
        spec: ModelSpec,
        weights: inputs.Path | None,
        autoencoder: inputs.Path | None,
        random_weights: bool,
        device: str | torch.device | None,
        dtype: torch.dtype | str,
        graphs: bool,
        progress: bool,
    ) -> Pipeline:
        device = devices.usable_device(device)
        dtype = dtypes.usable_dtype(dtype, device)
        backends.preferred()  # report a wrong RESSHIFT_FAST_BACKEND now, not in the middle of an image
        spec, denoiser, first_stage = loading.build(
            spec, weights=weights, autoencoder=autoencoder, random_weights=random_weights, progress=progress
        )
        precompilation.prepare_verification(device, dtype, progress)
        return cls(spec, denoiser, first_stage, device, dtype, graphs=graphs)

    @overload
    def __call__(
        self, image: inputs.ImageOrPath, mask: inputs.Masks | None = None, **options: Unpack[inputs.Options]
    ) -> Image.Image: ...
    @overload
    def __call__(
        self, image: inputs.Pixels, mask: inputs.Masks | None = None, **options: Unpack[inputs.Options]
    ) -> inputs.Pixels: ...
    @overload
    def __call__(
        self, image: list[Any], mask: inputs.Masks | None = None, **options: Unpack[inputs.Options]
    ) -> list[Any]: ...
    @overload
    def __call__(
        self, image: tuple[Any, ...], mask: inputs.Masks | None = None, **options: Unpack[inputs.Options]
    ) -> tuple[Any, ...]: ...
    def __call__(
        self,
        image: Any,
        mask: inputs.Masks | None = None,
        *,
        seed: inputs.Seeds = 0,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
        noise: str = "field",
        layout: str | None = None,
        progress: inputs.Progress = True,
    ) -> Any:
        """Restore an image, or a list of images of any sizes.

        | `image` | returns | range | dtype | device | layout |
        |---|---|---|---|---|---|
        | path, bytes, open file | PIL image | 8 bit (I;16 for 16-bit gray) | – | – | L, LA, RGB or RGBA as in it |
        | PIL image | PIL image | 8 bit (I;16 stays) | – | – | mode L, LA, RGB or RGBA |
        | array | array | full integer range, floats [0, 1] | as given | CPU | `layout`, else [H, W] or [H, W, C] |
        | tensor | tensor | full integer range, floats [0, 1] | as given | as given | `layout`, else [(B,) C, H, W] |
        | `images.Photo` | `images.Photo` | full integer range | as given | CPU | [H, W, 3], alpha apart |
        | list, tuple | list, tuple | each as its kind | | | |

        Integers are uint8 or uint16; C is 1, 3 or 4, of which the fourth is alpha; bytes are those of an image file.
        Sides are multiplied by the model's scale, alpha is enlarged bicubically. The colour profile and EXIF data of
        files and PIL images are kept in the `info` of the PIL image returned.

        Args:
            image: see the table. Values are sRGB.
            mask: for inpainting models only: what to fill in, one for each image (a list for a list): a path, PIL
                image, Photo or array [H, W] of the image's size, or a tensor [B, 1, H, W] or [H, W] for a tensor;
                True, or at least half of full brightness, is to be filled in. Pixels outside it come back bit for bit.
            seed: of the noise, in [0, 2⁶³); one for all images, or a list with one for each.
            tile: largest side of a tile in input pixels, rounded down to a multiple of the model's `pad_multiple`;
                None takes the model's default, or on a CPU the sides up to that which take the least time. Smaller
                tiles need less memory.
            overlap: input pixels that neighbouring tiles share; None takes the model's default, at most a quarter of
                a tile.
            batch_size: tiles that are restored at once. None takes 4; on a CPU 1 to 8, the fewest that occupy its
                threads by `restoration.cores`: 1 with up to two threads or noise="torch". It changes rounding.
            noise: "field", a function of the seed and the pixel's position, so that it does not depend on the tiling;
                or "torch", drawn with torch's generator in the official program's order.
            layout: of arrays and tensors: "BCHW", "BHWC", "CHW", "HWC" or "HW"; None takes the usual one of the table.
            progress: True shows a bar on a terminal; a function is called with (done, total) denoiser evaluations.

        Raises:
            TypeError, ValueError: for an argument that does not fit, naming what was expected.
            OSError: for a file that cannot be read.
        """
        sources, gather = sources_of(image, layout)
        seeds = _seeds(seed, len(sources))
        masks = self._masks(mask, sources)
        if noise not in NOISES:
            raise ValueError(f"noise is {noise!r}, expected 'field' or 'torch'")
        if noise == "torch" and len(set(seeds)) > 1:
            raise ValueError("noise='torch' draws in order from one seed; give a single seed, or use noise='field'")
        tile, overlap = _integer("tile", tile), _integer("overlap", overlap)
        batch_size = _integer("batch_size", batch_size)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        jobs = [
            self._job(source, mask, one, tile, overlap) for source, mask, one in zip(sources, masks, seeds, strict=True)
        ]
        self._run(jobs, batch_size, noise, progress)
        return gather([job.source.result() for job in jobs])

    def compile(
        self,
        how: str | None = None,
        *,
        tune: bool = True,
        max_graphs: int = compilation.MAX_GRAPHS,
        **options: Any,
    ) -> Pipeline:
        """Make later calls faster, with CUDA graphs or torch.compile.

        With graphs, the first call with each batch shape autotunes its kernels, unless the autotune cache has them,
        and captures a CUDA graph. torch.compile compiles once for all sizes, and needs a C++ compiler on a CPU; if it
        fails, calls continue uncompiled after one warning.

        Args:
            how: "graphs" or "torch"; None takes CUDA graphs on a CUDA device and torch.compile elsewhere.
            tune: autotune kernels before a graph is captured. The choices are cached on disk. A new choice may change
                results by rounding errors; without one, results are bitwise the same.
            max_graphs: number of graphs kept, one per batch shape; each holds its inputs and results in memory.
            options: keyword arguments of `torch.compile`.

        Returns:
            This pipeline.

        Raises:
            ValueError: for another `how`, or graphs on a device other than CUDA.
        """
        self._compiled = compilation.compiled(
            self.restoration, self.device, how, tune=tune, max_graphs=max_graphs, options=options
        )
        self._tunes = tune and isinstance(self._compiled, compilation.GraphCache)
        return self

    def _masks(self, mask: inputs.Masks | None, sources: list[Source]) -> list[np.ndarray | None]:
        """One bool [H, W] for each source, or None for a model without masks."""
        if self.spec.needs_mask != (mask is not None):
            need = "is an inpainting model and needs a mask" if self.spec.needs_mask else "takes no mask; leave it out"
            raise ValueError(f"{self.spec.name} {need}")
        if mask is None:
            return [None] * len(sources)
        if isinstance(mask, Tensor):
            mask = list(mask.detach().cpu().reshape(-1, *mask.shape[-2:]).numpy())
        masks = list(mask) if isinstance(mask, list | tuple) else [mask]
        if len(masks) != len(sources):
            raise ValueError(f"{len(masks)} masks for {len(sources)} images; give one for each")
        read = [images.read_mask(m.detach().cpu().numpy() if isinstance(m, Tensor) else m) for m in masks]
        for one, source in zip(read, sources, strict=True):
            if one.shape != (source.height, source.width):
                raise ValueError(
                    f"the mask is {one.shape[1]}×{one.shape[0]}, but {source.name} is "
                    f"{source.width}×{source.height}; make them the same size"
                )
        return [*read]

    def plan_tiles(
        self, height: int, width: int, tile: int | None = None, overlap: int | None = None
    ) -> tuple[Axis, Axis]:
        """Where the tiles of an image lie: on a CPU those that take the least time, see `ModelSpec.plan_tiles`.

        Args:
            height, width: the image's sides in input pixels.
            tile, overlap: as in `Pipeline.__call__`.

        Returns:
            (rows, columns).

        Raises:
            ValueError: as `ModelSpec.plan_tiles`.
        """
        return self.spec.plan_tiles(height, width, tile, overlap, cheapest=self.device.type == "cpu")

    def _job(self, source: Source, mask: np.ndarray | None, seed: int, tile: int | None, overlap: int | None) -> Job:
        rows, columns = self.plan_tiles(source.height, source.width, tile, overlap)
        try:
            source.begin(self.spec.scale, mask)
            fills = mask is not None and self.spec.filled
            filled = fill_photo(source.whole(), torch.from_numpy(mask)) if fills else None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ResultTooLargeError(
                f"{source.name}: there is not enough memory for the result of {source.width * self.spec.scale}×"
                f"{source.height * self.spec.scale} pixels; restore a smaller photo, or its parts"
            ) from error
        blender = Blender(rows, columns, self.spec.scale, partial(source.write, mask=mask))
        return Job(source, mask, rows, columns, seed, blender, filled)

    def _run(self, jobs: list[Job], batch_size: int | None, noise: str, progress: inputs.Progress) -> None:
        if noise == "torch" and self.device.type == "cpu":
            batch_size = batch_size or 1  # it is drawn for a batch at once, and must not depend on the threads

        def most(shape: tuple[int, int], count: int) -> int:
            return batch_size or cores.default_batch_size(self.spec, shape, count, self.device, self.dtype)

        batches = list(plan_batches(jobs, most))
        generator = torch.Generator(self.device).manual_seed(jobs[0].seed) if noise == "torch" and jobs else None
        steps = self.spec.schedule.num_steps
        needed = [any(needs_restoring(jobs[tile.image], tile) for tile in batch) for batch in batches]
        shapes = {shape_of(jobs, batch) for batch, run in zip(batches, needed, strict=True) if run}
        tuned = self._tunes or backends.is_measuring()
        precompilation.prepare_restoration(self.spec, self.device, self.dtype, shapes, progress is True, tuned)
        _log.debug("%d images in %d batches of the shapes %s", len(jobs), len(batches), sorted(shapes))
        with Progress(progress, sum(needed) * steps) as advance:
            for batch, run in zip(batches, needed, strict=True):
                restored = self._restore(jobs, batch, generator, advance) if run else [None] * len(batch)
                for tile, pixels in zip(batch, restored, strict=True):
                    jobs[tile.image].blender.add(tile.row, tile.column, pixels)

    def _latent_like(self, image: Tensor) -> Tensor:
        """An uninitialized tensor with the shape and device of the latent of `image`."""
        spec, margin = self.spec, 2 * self.restoration.margin
        sides = [int((side - margin) * spec.latent_per_input) for side in image.shape[2:]]
        return torch.empty(image.shape[0], spec.first_stage.latent_channels, *sides, device=image.device)

    @torch.inference_mode()  # unlike no_grad, operators then skip the dispatcher's autograd key
    def _restore(
        self, jobs: list[Job], batch: list[Tile], generator: torch.Generator | None, advance: Callable[[], None]
    ) -> np.ndarray:
        """Restore a batch of tiles of one shape: float32 [tiles, 3, height · scale, width · scale]."""
        spec, device = self.spec, self.device
        margin = self.restoration.margin
        image = torch.stack([crop(jobs[tile.image], tile, margin) for tile in batch]).to(device)
        mask = None
        if spec.needs_mask:
            mask = torch.stack([crop_mask(jobs[tile.image], tile) for tile in batch]).to(device)
        place = [[tile.top * spec.latent_per_input, tile.left * spec.latent_per_input] for tile in batch]
        origin = torch.tensor(place, device=device).long()
        seed = torch.tensor([jobs[tile.image].seed for tile in batch], device=device)
        steps = spec.schedule.num_steps
        noise = None
        if generator is not None:
            channels, first = spec.denoiser.noise_channels, spec.prior_first
            latent = self._latent_like(image)
            noise = torch_noise(latent, steps, generator, noise_channels=channels, prior_first=first)
        with devices.on(device):
            pixels, finite = self._run_networks((image, seed, origin, mask, noise), advance)
        if not finite:
            cure = "use float32 or bfloat16" if self.dtype == torch.float16 else "use other weights, these are damaged"
            raise ValueError(
                f"the networks of {spec.name} overflowed in {str(self.dtype).removeprefix('torch.')}; {cure}"
            )
        return pixels.cpu().numpy()

    def _run_networks(self, arguments: tuple[Any, ...], advance: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Run `restoration(*arguments)` compiled, as a CUDA graph or eagerly, and call `advance` once per step."""
        if self.device.type == "cpu":  # it does not wait for launches, so only what costs time itself is derived
            self.restoration.chain.prepare()
        else:
            self.restoration.prepare()

        def after_step(t: int, x: Tensor) -> None:
            advance()

        if self._compiled is not None:
            results, reported = self._compiled(*arguments), False
        elif self._graphs is not None:
            results, reported = self._graphs(*arguments, callback=after_step)
        else:
            results, reported = self.restoration(*arguments, after_step), True
        for _ in range(0 if reported else self.spec.schedule.num_steps):
            advance()
        return results


@overload
def sample(
    image: inputs.ImageOrPath, model: str | None = ..., **options: Unpack[inputs.SampleOptions]
) -> Image.Image: ...
@overload
def sample(image: inputs.Pixels, model: str | None = ..., **options: Unpack[inputs.SampleOptions]) -> inputs.Pixels: ...
@overload
def sample(image: list[Any], model: str | None = ..., **options: Unpack[inputs.SampleOptions]) -> list[Any]: ...
@overload
def sample(
    image: tuple[Any, ...], model: str | None = ..., **options: Unpack[inputs.SampleOptions]
) -> tuple[Any, ...]: ...
def sample(
    image: Any,
    model: str | None = None,
    *,
    mask: inputs.Masks | None = None,
    seed: inputs.Seeds = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    weights: inputs.Path | None = None,
    autoencoder: inputs.Path | None = None,
    **options: Any,
) -> Any:
    """Restore an image with a model of the catalogue; the result is of the input's kind, see `Pipeline.__call__`.

    The last pipeline is cached, so that consecutive calls with the same model load its weights once.

    Args:
        image, mask, seed: as in `Pipeline.__call__`, which also takes `options` (tile, overlap, batch_size, noise,
            layout, progress).
        model: of the catalogue; None means that of the weights, else photo-x4 or, with a mask, photo-inpaint.
        device, dtype, weights, autoencoder: as in `Pipeline.from_pretrained`.

    Raises:
        ValueError, TypeError, OSError: as in `Pipeline.__call__` and `Pipeline.from_pretrained`.

    Example:
        >>> import numpy as np
        >>> sample(np.zeros((16, 24, 3), dtype=np.uint8)).shape
        (64, 96, 3)
    """
    model = model or catalog.default_model(masked=mask is not None, weights=weights)
    device = devices.usable_device(device)
    dtype = dtypes.usable_dtype(dtype, device)
    key = (model, _version(weights), _version(autoencoder), str(device), dtype)
    with _cached_lock:
        if key not in _cached:
            pipeline = Pipeline.from_pretrained(
                model, weights=weights, autoencoder=autoencoder, device=device, dtype=dtype
            )
            _cached.clear()
            _cached[key] = pipeline
        pipeline = _cached[key]
    return pipeline(image, mask, seed=seed, **options)


_cached: dict[tuple[Any, ...], Pipeline] = {}
_cached_lock = threading.Lock()


def _version(path: inputs.Path | None) -> tuple[str, int] | None:
    """Path and modification time, so that a weights file that was replaced is loaded again."""
    return None if path is None else (str(path), os.path.exists(path) and os.stat(path).st_mtime_ns)


def _prepared(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    return prepack_weights_(module.to(device=device, dtype=dtype)).eval().requires_grad_(False)


def _seeds(seed: inputs.Seeds, count: int) -> list[int]:
    if isinstance(seed, np.ndarray | Tensor) and seed.ndim == 1:
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != count:
            raise ValueError(f"{len(seed)} seeds for {count} images; give one for all, or one for each")
        return [check_seed("seed", one) for one in seed]
    return [check_seed("seed", seed)] * count


def _integer(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}, expected an integer or None")
    return value.__index__()
