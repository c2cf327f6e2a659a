"""Packages of other projects, which tests of bridges need; such a test is skipped where its package is missing.

With RESSHIFT_FAST_REQUIRE_PROJECTS=1, as in .ci/run, it fails there instead.
"""

import importlib.metadata
import importlib.util
import os

import pytest
import torch


def needs(name: str) -> None:
    """Skip the tests of a file whose package is not installed: a distribution, since a folder may have its name.

    torchvision's build for CUDA has no operators beside a torch for CPUs, and can't be imported there unless those that
    it describes are declared.
    """
    installed = any(importlib.metadata.distributions(name=name))
    if not installed and not os.environ.get("RESSHIFT_FAST_REQUIRE_PROJECTS"):
        pytest.skip(f"{name} is not installed", allow_module_level=True)
    if importlib.util.find_spec("torchvision") is not None and not _declared:
        _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                _declared[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_declared: list[torch.library.Library] = []
