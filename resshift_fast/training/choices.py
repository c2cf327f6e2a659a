"""The objectives and degradations that a configuration can name.

Each is a factory, called with (config, parts) for an objective and (config, spec) for a degradation, or the place of
one, "module:name", which is imported with its first use. Settings of its own are in the configuration's
`objective_options` and `degradation_options`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

Factory = Callable[..., Any]

OBJECTIVES: dict[str, str | Factory] = {
    "rollout": "resshift_fast.training.rollout:Rollout",
    "official": "resshift_fast.training.objective:from_config",
    "perceptual": "resshift_fast.training.perceptual:from_config",
    "distill": "resshift_fast.training.distillation:from_config",
}
AUTOENCODER_OBJECTIVES: dict[str, str | Factory] = {
    "vqgan": "resshift_fast.training.vqgan:from_config",
}
# What is trained for an objective instead of the model itself: (config, spec) to (config, spec).
PREPARATIONS: dict[str, str | Factory] = {"distill": "resshift_fast.training.teachers:prepare"}
DEGRADATIONS: dict[str, str | Factory] = {
    "mixture": "resshift_fast.training.degradations:from_config",
    "second_order": "resshift_fast.training.degradations.second_order:from_config",
    "bicubic": "resshift_fast.training.degradations.resizing:from_config",
    "face": "resshift_fast.training.degradations.face:from_config",
    "masks": "resshift_fast.training.degradations.masks:from_config",
}


def chosen(choices: dict[str, str | Factory], kind: str, name: str) -> Factory:
    """The factory called `name`.

    Args:
        choices: one of the tables above.
        kind: what they are, for the message.

    Raises:
        ValueError: for an unknown name.
    """
    check(choices, kind, name)
    found = choices[name]
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        found = getattr(import_module(module), attribute)
    assert callable(found)
    return found


def check(choices: dict[str, str | Factory], kind: str, name: str) -> None:
    """Raise ValueError unless there is a choice called `name`."""
    if name not in choices:
        raise ValueError(f"unknown {kind} {name!r}; expected one of {', '.join(choices)}")
