"""Reference arrays, and the weights and inputs from which they were computed.

A weight is a pure function of its state-dict name and shape, an input of its name and shape: numpy's frozen
`RandomState` stream, seeded with the name's CRC-32. Networks with the official keys thus reproduce the
reference outputs without a checkpoint.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from resshift_fast.models import catalog

GOLDEN = Path(__file__).parent / "golden"
BUFFERS = ("attn_mask", "relative_position_index")  # follow from the configuration; left as the module made them


def arrays(filename: str) -> dict[str, Tensor]:
    """The arrays of one .npz file as tensors."""
    with np.load(GOLDEN / filename) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive}


def document(filename: str):
    """The content of one .json file."""
    return json.loads((GOLDEN / filename).read_text())


def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def array(name: str, *shape: int) -> Tensor:
    """The input called `name`: standard normal, float32. Without values within `torch.device("meta")`."""
    if torch.get_default_device().type == "meta":
        return torch.empty(shape)
    return torch.from_numpy(_normal(name, shape).astype(np.float32))


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight called `name`, float32: scaled to keep activations near 1, never all zeros or ones."""
    value = _normal(name, shape)
    if name.endswith("relative_position_bias_table"):
        value *= 0.5
    elif name.endswith("quantize.embedding.weight"):
        pass
    elif len(shape) == 1:
        value = 0.1 * value + (1 if name.endswith("weight") else 0)
    else:
        value /= np.sqrt(math.prod(shape[1:]))
        if name.endswith("conv_out.weight"):
            value *= 0.3
    return torch.from_numpy(value.astype(np.float32))


def fill_(module: nn.Module) -> nn.Module:
    """Give every parameter of `module` its deterministic value, and return it."""
    state = module.state_dict()
    own = {name: weight(name, tuple(tensor.shape)) for name, tensor in state.items() if not name.endswith(BUFFERS)}
    module.load_state_dict(state | own)
    return module


class OfficialNetworks:
    """Networks of the catalogue with deterministic weights.

    Weights of equal name and shape share one tensor, so that four denoisers take little more memory than one.
    Do not modify them.
    """

    def __init__(self):
        self._weights: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def denoiser(self, model: str) -> nn.Module:
        """The denoiser of the catalogue entry `model`."""
        with torch.device("meta"):
            return self._fill(catalog.build_denoiser(catalog.get(model)))

    def first_stage(self, model: str) -> nn.Module:
        """The first stage of the catalogue entry `model`."""
        with torch.device("meta"):
            return self._fill(catalog.build_first_stage(catalog.get(model)))

    def _fill(self, module: nn.Module) -> nn.Module:
        state = module.state_dict()
        for name, tensor in state.items():
            if not name.endswith(BUFFERS):
                key = name, tuple(tensor.shape)
                if key not in self._weights:
                    self._weights[key] = weight(*key)
                state[name] = self._weights[key]
        module.load_state_dict(state, assign=True)
        return module.eval().requires_grad_(False)

    def clear(self) -> None:
        """Free the weights."""
        self._weights.clear()
