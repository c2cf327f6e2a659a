"""The operator and the stage of an activity, from the ranges around its launch or else from its name."""

import re
from collections.abc import Collection, Iterable

from resshift_fast import ops  # noqa: F401  registers the operators
from resshift_fast.backends import OPERATORS
from resshift_fast.core import nvtx as library
from resshift_fast.measure.report.trace import COPY, GRAPH, Activity

NAMESPACE = "resshift_fast::"
OUTSIDE = "outside the stages"
BEFORE, DENOISE, AFTER = "encode and prepare", "denoise", "decode"
PRIOR, POSTERIOR = f"{NAMESPACE}prior_sample", f"{NAMESPACE}posterior_step"

_UNNAMED = re.compile(r"(\(anonymous namespace\)|<unnamed>)::")
# The first argument of the library's kernels in C++ is a structure whose type name contains the operator's name.
_OWN_CUDA = re.compile(r"(?:void )?resshift::.*?_kernel(?:<.*>)?\((?:\w+::)*(\w+)")
_OWN_TRITON = re.compile(r"(\w+)_kernel$")
# Triton kernels whose names do not contain their operator's.
_OWN_STEMS = {
    "group_stats": "group_norm",
    "group_stats_combine": "group_norm",
    "merge_group_stats": "add_concat_group_norm",
    "combine_parts": "spatial_attention",
    "sum_taps": "upsample_conv2d",
    "bias_table_bwd": "window_attention_backward",
}
# PyTorch's and NVIDIA's kernels by words in their names, the most specific words first.
_FOREIGN_KERNELS = (
    ("convolution", r"fprop|dgrad|wgrad|conv|winograd|nchwToNhwc|nhwcToNchw|cudnn"),
    ("matrix product", r"gemm|gemv|cutlass|cublas|splitK|nvjet"),
    ("torch.compile's code", r"^triton_(poi|red|per|tem|mm|for)|CompiledFxGraph"),
    ("normalization", r"norm|Moments|welford"),
    ("resampling", r"upsample|interpolat"),
    ("concatenation", r"CatArray"),
    ("padding", r"pad"),
    ("softmax", r"softmax"),
    ("reduction", r"reduce"),
    ("elementwise", r"elementwise|vectorized|unrolled|copy_kernel|FillFunctor|index"),
)
# What emit_nvtx appends to an operator's name.
_DETAILS = re.compile(r", (seq|op_id|sizes|input_op_ids) = .*", re.DOTALL)


def without_details(name: str) -> str:
    """The name of a range without the ids and sizes that PyTorch appends."""
    return _DETAILS.sub("", name)


def operator_of(activity: Activity, known: Collection[str] = ()) -> str:
    """The operator that an activity belongs to.

    Args:
        activity: the activity.
        known: PyTorch operators that are preferred to the operators that call them.

    Returns:
        "resshift_fast::X" for an operator of the library, "aten::X" for one of PyTorch, or a description if only the
        kernel's name is known.
    """
    for name in activity.ranges:
        if name.startswith(library.OPERATOR):
            return NAMESPACE + name.removeprefix(library.OPERATOR)
        if name.startswith(NAMESPACE):
            return name
    called = [name for name in activity.ranges if "::" in name]
    if called:
        return next((name for name in called if name in known), called[0])
    return by_kernel_name(activity)


def by_kernel_name(activity: Activity) -> str:
    """The operator according to a kernel's name."""
    if activity.kind == COPY:
        return "memory copy"
    if activity.kind == GRAPH:
        return "whole CUDA graph"
    own = own_operator(activity.name)
    if own is not None:
        return NAMESPACE + own
    named = (what for what, words in _FOREIGN_KERNELS if re.search(words, activity.name, re.IGNORECASE))
    return next((f"by name: {what}" for what in named), "by name: other")


def own_operator(kernel: str) -> str | None:
    """The library's operator that a kernel belongs to, or None for a foreign kernel."""
    kernel = _UNNAMED.sub("", kernel)
    if found := _OWN_CUDA.match(kernel):
        if found[1] == "ChainStep":  # for both ends of a step, which the last template argument tells apart
            return "prior_sample" if re.search(r"(\(bool\)1|true)>\(", kernel) else "posterior_step"
        stem = re.sub(r"(?<!^)(?=[A-Z])", "_", found[1]).lower()
    elif found := _OWN_TRITON.match(kernel):
        stem = re.sub(r"_bwd(_|$)", r"_backward\1", found[1])
        if found[1] in _OWN_STEMS:
            return _OWN_STEMS[found[1]]
    else:
        return None
    return max((name for name in OPERATORS if name in stem), key=len, default=None)


def stages_of(activities: Iterable[Activity], operators: Iterable[str]) -> tuple[list[str], bool]:
    """The stage of every activity; activities are sorted by start.

    If a restoration has no stage ranges, as in a graph whose capture was not recorded or in compiled code, stages are
    separated by the chain's own operators: the prior's sample, then the posterior steps.

    Returns:
        (stages, whether any was found by operators instead of ranges).
    """
    activities, operators = list(activities), list(operators)
    stages = [_stage(activity.ranges) for activity in activities]
    guessed = False
    for number in {activity.restoration for activity in activities}:
        own = [i for i, activity in enumerate(activities) if activity.restoration == number]
        if not any(stages[i] for i in own):
            told = _by_milestones([operators[i] for i in own])
            guessed = guessed or bool(told)
            for i, stage in zip(own, told, strict=False):
                stages[i] = stage
    return [stage or OUTSIDE for stage in stages], guessed


def _by_milestones(operators: list[str]) -> list[str]:
    """The stages of a whole chain's operators; none if the separating operators are missing."""
    following = [*operators[1:], None]
    passed = [one in (PRIOR, POSTERIOR) and other != one for one, other in zip(operators, following, strict=True)]
    if sum(passed) < 2:
        return []
    stages, done, stage = [], 0, BEFORE
    for one in passed:
        stages.append(stage)
        if one:  # the first is the prior's sample, whatever its kernel is called
            done += 1
            stage = f"{DENOISE} {done}" if done < sum(passed) else AFTER
    return stages


def _stage(ranges: Iterable[str]) -> str | None:
    named = (name for name in ranges if name.startswith(library.STAGE))
    return next((name.removeprefix(library.STAGE) for name in named), None)
