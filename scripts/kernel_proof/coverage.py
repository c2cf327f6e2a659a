"""Which kernels the launch cases launch, and whether that is all of them."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resshift_fast.kernels import tuning
from resshift_fast.kernels.ahead import Job, job_of
from resshift_fast.kernels.launch import record

if TYPE_CHECKING:
    from .launch_cases import LaunchCase


def recorded(case: "LaunchCase", arch: int) -> list[Any]:
    """The launches of a launch case in the configurations for `arch`."""
    with tuning.targeting(arch), record() as launches:
        case.call()
    return launches


def entries(launch_cases: Sequence["LaunchCase"], architectures: Sequence[int]) -> dict[str, Job]:
    """Budget entry to job: "kernel case sm_90", with #2 if a launch case launches a kernel in a second way."""
    jobs: dict[str, Job] = {}
    for arch in architectures:
        for case in launch_cases:
            ways: dict[str, list[Job]] = {}
            for launch in recorded(case, arch):
                job, known = job_of(launch, arch), ways.setdefault(launch.name, [])
                if job in known:
                    continue
                known.append(job)
                way = f"#{len(known)}" if len(known) > 1 else ""
                name = f"{launch.name} {case.name}{way} sm_{arch}"
                if name in jobs:
                    raise ValueError(f"two launch cases are called {case.name}")
                jobs[name] = job
    return jobs


def started_kernels(folder: Path) -> set[tuple[str, str]]:
    """(file, name) of the `triton.jit` functions in a folder that launchers use, without those only kernels call."""
    functions, used = set(), set()
    for file in folder.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and _is_kernel(node):
                functions.add((file.name, node.name))
            else:
                used |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                used |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    return {(file, name) for file, name in functions if name in used}


def _is_kernel(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)
