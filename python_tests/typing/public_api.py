"""The public API as a user's type checker sees it: mypy and pyright read this file, nothing runs it.

`type: ignore` marks a deliberate error: a checker that does not find it reports the comment as unnecessary.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import assert_type

import resshift_fast
from resshift_fast import CheckpointError, DownloadError, ImageError, Photo, Pipeline, ops, sample, use_backend

assert_type(resshift_fast.__version__, str)


def images(image: Image.Image, array: np.ndarray, tensor: Tensor, photo: Photo) -> None:
    assert_type(sample("a.png"), Image.Image)
    assert_type(sample(Path("a.png"), "realsr-x4-v3", seed=3), Image.Image)
    assert_type(sample(b"bytes of a file"), Image.Image)
    assert_type(sample(open("a.png", "rb")), Image.Image)  # noqa: SIM115
    assert_type(sample(array, layout="BHWC"), np.ndarray)
    assert_type(sample(image, device="cpu", dtype="bfloat16"), Image.Image)
    assert_type(sample(array, dtype=torch.float16, weights=Path("w.safetensors")), np.ndarray)
    assert_type(sample(tensor, mask=tensor, tile=256), Tensor)
    assert_type(sample(photo, progress=lambda done, total: None), Photo)
    assert_type(sample([array, image, "a.png"], seed=[1, 2, 3]), list[Any])
    assert_type(sample((array, tensor)), tuple[Any, ...])
    sample("a.png", sead=3)  # type: ignore
    sample("a.png", seed="three")  # type: ignore
    sample(3)  # type: ignore
    sample()  # type: ignore


def pipelines(image: Image.Image, array: np.ndarray, tensor: Tensor, photo: Photo) -> None:
    pipe = assert_type(Pipeline.from_pretrained(), Pipeline)
    assert_type(Pipeline.from_pretrained("faceir", device=torch.device("cuda"), random_weights=True), Pipeline)
    assert_type(Pipeline.from_config("model.yaml", weights="w.pth"), Pipeline)
    assert_type(pipe.compile(), Pipeline)
    assert_type(pipe.device, torch.device)
    assert_type(pipe.dtype, torch.dtype)
    assert_type(pipe("a.png", tile=256, batch_size=4), Image.Image)
    assert_type(pipe(image, "mask.png"), Image.Image)
    assert_type(pipe(array, mask=array, noise="torch"), np.ndarray)
    assert_type(pipe(tensor, overlap=None), Tensor)
    assert_type(pipe(photo), Photo)
    assert_type(pipe([array, photo], mask=[array, "mask.png"]), list[Any])
    pipe("a.png", sead=3)  # type: ignore
    pipe("a.png", model="faceir")  # type: ignore
    Pipeline.from_pretrained(device=0.5)  # type: ignore
    Pipeline.from_pretrain()  # type: ignore


def backends() -> None:
    assert_type(use_backend("reference").__enter__(), None)
    context: AbstractContextManager[None] = use_backend("triton")
    with context, use_backend("auto"):
        pass
    use_backend()  # type: ignore
    use_backend(name=3)  # type: ignore


def operators(x: Tensor, weight: Tensor) -> None:
    assert_type(ops.group_norm(x, 32, weight, weight, scale=x, shift=x, activation="silu"), Tensor)
    assert_type(ops.window_attention(x, weight, num_heads=2, window_size=8), Tensor)
    assert_type(ops.window_attention_proj(x, weight, weight, residual=x, num_heads=2, window_size=8), Tensor)
    assert_type(ops.vector_quantize(x, weight), tuple[Tensor, Tensor])
    assert_type(ops.conv2d(x, weight, residual=x), Tensor)
    assert_type(ops.pack_conv2d(weight), Tensor)
    assert_type(ops.posterior_step(x, x, x, weight, noise=x), tuple[Tensor, Tensor])
    assert_type(ops.posterior_step(x, x, x, weight, last=True, next_input=False), tuple[Tensor, Tensor | None])
    assert_type(ops.prior_sample(x, weight, x, next_input=True), tuple[Tensor, Tensor])
    signature: Callable[[Tensor, Tensor, Tensor], Tensor] = ops.spatial_attention
    signature(x, x, x)
    ops.group_norm(x, "32", weight, weight)  # type: ignore
    ops.group_norm(x, 32, weight, weight, 1e-5, x)  # type: ignore
    ops.no_such_operator(x)  # type: ignore


def photos_and_errors(pixels: np.ndarray) -> None:
    photo = Photo(pixels, alpha=None, gray=True, name="scan")
    assert_type(photo.height, int)
    assert_type(photo.alpha, np.ndarray | None)
    Photo()  # type: ignore
    try:
        sample("a.png")
    except (CheckpointError, DownloadError, ImageError) as error:
        assert_type(str(error), str)
    errors: list[ValueError | OSError] = [CheckpointError("damaged"), DownloadError("none"), ImageError("cut off")]
    assert_type(errors[0], ValueError | OSError)


resshift_fast.samples("a.png")  # type: ignore
