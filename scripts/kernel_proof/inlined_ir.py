"""The intermediate representation of a kernel before the compiler's passes for GPUs.

It is made in a tenth of the time that a compilation takes, and is the same for sources that differ in names, comments,
places in their files, or in which function a statement is.
"""

import importlib
import tempfile
from typing import Any
from unittest import mock

from triton import knobs
from triton._C.libtriton import ir, passes
from triton.compiler import ASTSource

from resshift_fast.kernels import ahead
from resshift_fast.kernels.ahead import Job


class _Made(Exception):
    """Ends a compilation; its argument is the representation."""


def inlined_ir(job: Job) -> str:
    """Triton's intermediate representation of a job without source locations, its functions inlined.

    Raises:
        Exception: errors of Triton's compiler.
    """
    make_ir = ASTSource.make_ir

    def make_and_stop(*args: Any, **options: Any) -> None:
        raise _Made(_simplified(make_ir(*args, **options)))

    with (
        tempfile.TemporaryDirectory(prefix="kernel_proof_") as empty,
        knobs.cache.scope(),
        mock.patch.object(ASTSource, "make_ir", make_and_stop),
    ):
        # A kernel that was compiled before would be taken from one of the caches.
        knobs.cache.dir = empty
        getattr(importlib.import_module(job.module), job.kernel).device_caches.clear()
        try:
            ahead.compile_job(job)
        except _Made as made:
            return made.args[0]
    raise RuntimeError(
        f"{job.kernel} was not compiled by Triton's usual way; kernel_proof/inlined_ir.py has to follow it"
    )


def _simplified(module: Any) -> str:
    manager = ir.pass_manager(module.context)
    passes.common.add_inliner(manager)
    for add in (passes.common.add_canonicalizer, passes.common.add_cse, passes.common.add_symbol_dce):
        add(manager)
    manager.run(module, "inlined_ir")
    return module.str_nodebug()
