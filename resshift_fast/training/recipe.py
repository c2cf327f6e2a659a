"""Recipes: trainings described by a YAML file of this project, with settings of `TrainConfig` by name.

settings:
  model: nano-x4
  objective: perceptual
  objective_options: {features: 0.1}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from resshift_fast.training.config import TrainConfig
from resshift_fast.training.degradations import Mixture
from resshift_fast.training.degradations.drawing import from_options

SECTION = "settings"
# What belongs to a machine, and not to a recipe.
OF_A_MACHINE = frozenset(("run", "override"))


def is_recipe(tree: Mapping[str, Any]) -> bool:
    """Whether the content of a YAML file is a recipe, and not a file of the official training code."""
    return SECTION in tree


def read(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The settings of a recipe, checked.

    Args:
        tree: content of the file.
        source: its name in messages.

    Raises:
        ValueError: naming the setting, if one is unknown, or has a value of another kind or outside its range.
    """
    section = tree[SECTION]
    if set(tree) != {SECTION} or not isinstance(section, Mapping):
        raise ValueError(f"{source}: a recipe has one section, {SECTION}, with settings by name; got {', '.join(tree)}")
    known = {one.name for one in fields(TrainConfig)} - OF_A_MACHINE
    for name in section:
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{source}: {SECTION} has the unknown name {name}{hint}")
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in section.items()
    }
    try:
        if "mixture" in found:
            found["mixture"] = from_options(Mixture, section["mixture"])
        # Refuses bad values before the training.
        from_options(TrainConfig, {"data": "", "run": ""} | found)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{source}: {error}") from None
    return found
