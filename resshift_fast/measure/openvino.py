"""The networks run by OpenVINO on a CPU, which people without a GPU would choose instead of PyTorch."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from resshift_fast.backends import use_backend

if TYPE_CHECKING:
    from collections.abc import Callable

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class Compiled:
    """A method of a module, exported and compiled for each set of shapes that it is called with.

    Args:
        owner, name: the module and its method, which takes and returns tensors and tuples of them.
        dtype: in which OpenVINO computes, one of `PRECISIONS`; arguments and results are float32.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: for another dtype.
    """

    def __init__(self, owner: nn.Module, name: str, dtype: str):
        if dtype not in PRECISIONS:
            raise ValueError(f"OpenVINO computes in {' or '.join(PRECISIONS)} here, got {dtype}")
        try:
            import openvino
        except ImportError:
            raise ImportError("the provider openvino needs OpenVINO: pip install 'resshift-fast[bench]'") from None
        self._core, self._convert = openvino.Core(), openvino.convert_model
        self._owner, self._method = owner, getattr(owner, name)
        self._settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._made: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        """The method's result; `options` are no tensors."""
        tensors = pytree.tree_leaves(args)
        key = (*(tuple(tensor.shape) for tensor in tensors), *sorted(options.items()))
        if key not in self._made:
            self._made[key] = self._compile(args, options)
        found = self._made[key]([tensor.numpy(force=True) for tensor in tensors])
        return torch.from_numpy(found[0])

    def _compile(self, args: Any, options: dict[str, Any]) -> Callable[..., Any]:
        # What is made in inference mode can't be exported.
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad(), use_backend("reference"):
            warnings.simplefilter("ignore")  # of PyTorch's exporter, about itself
            args = pytree.tree_map(lambda tensor: tensor.contiguous().clone(), args)
            program = torch.export.export(_Method(self._owner, self._method, options), args)
            model = self._convert(program.run_decompositions())
        compiled: Callable[..., Any] = self._core.compile_model(model, "CPU", self._settings)
        return compiled


class _Method(nn.Module):
    """A module whose forward is a method of another one."""

    def __init__(self, owner: nn.Module, method: Callable[..., Any], options: dict[str, Any]):
        super().__init__()
        self.owner, self._method, self._options = owner, method, options

    def forward(self, *args: Any) -> Any:
        return self._method(*args, **self._options)
