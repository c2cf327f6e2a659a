"""Records of compiled kernels, written when their budgets are accepted, so that only changed kernels are compiled.

The key of a record is a hash of everything that its result depends on: the sources of the kernel and of what it calls,
the constants that it reads, the job, and the sources that analyse the result. If these have changed, the kernel's
intermediate representation is compared, which a rewording or a move does not change. A file is valid for one compiler.
"""

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

from resshift_fast.kernels.ahead import Job
from resshift_fast.kernels.launch import hash_callees_first

from .compilation import Compiled
from .inlined_ir import inlined_ir
from .machine_code import MachineCode

JUDGES = ("addresses.py", "compilation.py", "ir.py", "machine_code.py")
AGAIN = 40  # one of this many records is compiled again


class Record(NamedTuple):
    """What was compiled, and the hash of the intermediate representation that it was compiled from."""

    compiled: Compiled
    ir: str


Records = dict[str, Record]


@cache
def _judges() -> str:
    return hashlib.sha256(b"".join(Path(__file__).with_name(name).read_bytes() for name in JUDGES)).hexdigest()


def key(job: Job) -> str:
    """The key of a job's record. It changes when a kernel moves within its file."""
    kernel = getattr(importlib.import_module(job.module), job.kernel)
    hash_callees_first(kernel)
    return f"sm_{job.arch} " + hashlib.sha256(f"{_judges()} {kernel.cache_key} {job!r}".encode()).hexdigest()[:24]


def ir_key(job: Job) -> str:
    """A hash of the job's intermediate representation and of what else its result depends on; takes 0.1 s."""
    options = job.arch, job.num_warps, job.num_stages, job.maxnreg
    return hashlib.sha256(f"{_judges()} {options} {inlined_ir(job)}".encode()).hexdigest()[:24]


def same_ir(records: Records, jobs: Iterable[Job]) -> dict[Job, Record]:
    """The jobs among these whose intermediate representation is that of a record.

    Findings name lines of the source, which may have moved: a record with findings stands for its own sources only.
    """
    known = {record.ir: record for record in records.values() if not record.compiled.violations}
    found = {}
    for job in jobs if known else ():
        try:
            record = known.get(ir_key(job))
        except Exception:  # the error is reported when the job is compiled
            continue
        if record:
            found[job] = record
    return found


def but_of(records: Records, architectures: Iterable[int]) -> Records:
    """The records without those of some architectures."""
    return {key: record for key, record in records.items() if int(key.split()[0][3:]) not in set(architectures)}


def file_of(budgets: Path) -> Path:
    """The records beside a budget file."""
    return budgets.with_suffix(".compiled")


def load(file: Path, compiler: Mapping[str, str | bool]) -> Records:
    """Read records; none if the file does not exist or is for another compiler."""
    content = json.loads(file.read_text()) if file.exists() else {}
    if content.pop("compiler", None) != dict(compiler):
        return {}
    return {key: _record(**record) for key, record in content["records"].items()}


def _record(ir: str, violations: Iterable[tuple[str, str]] = (), **code: int | str) -> Record:
    return Record(Compiled(MachineCode(**code), [tuple(found) for found in violations]), ir)


def save(file: Path, compiler: Mapping[str, str | bool], records: Records) -> None:
    """Write records, one per line; a kernel that did not compile has none."""
    lines = []
    for name, (compiled, ir) in sorted(records.items()):
        if compiled.code:
            violations = {"violations": compiled.violations} if compiled.violations else {}
            lines.append(f"  {json.dumps(name)}: {json.dumps({'ir': ir} | asdict(compiled.code) | violations)}")
    file.write_text(f'{{\n "compiler": {json.dumps(compiler)},\n "records": {{\n' + ",\n".join(lines) + "\n }\n}\n")


def is_sampled(key: str, seed: str) -> bool:
    """Whether a recorded kernel is compiled again anyway: one of `AGAIN`, a random sample for `seed`."""
    return int(hashlib.sha256(f"{seed} {key}".encode()).hexdigest(), 16) % AGAIN == 0


def contradictions(
    jobs: Mapping[str, Job], compiled: Mapping[Job, Compiled], known: Mapping[Job, Record]
) -> list[tuple[str, str]]:
    """(entry, what is wrong) of kernels whose compiled code differs from their record."""
    differ = {job for job in known if _seen(known[job].compiled) != _seen(compiled[job])}
    text = "compiled code differs from the record for the same source"
    return [(name, text) for name, job in jobs.items() if job in differ]


def _seen(compiled: Compiled) -> tuple[MachineCode | None, list[tuple[str, str]]]:
    return compiled.code, compiled.violations
