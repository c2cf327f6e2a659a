"""The verification of a kernel in a process of its own, which it may end."""

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Loads this very copy of the package, which may be no one that `import` finds.
CODE = """
import sys
from importlib import import_module, util
import torch
package, file, name, backend, device, dtype = sys.argv[1:]
spec = util.spec_from_file_location(package, file)
sys.modules[package] = module = util.module_from_spec(spec)
spec.loader.exec_module(module)
import_module(f"{package}.ops")
operator = import_module(f"{package}.backends").OPERATORS[name]
verification = import_module(f"{package}.backends.verification")
verdict = verification.compare(operator, backend, torch.device(device), getattr(torch, dtype))
print(f"verdict: {verdict}")
"""
PACKAGE = __name__.partition(".")[0]
SECONDS = 600.0  # after which a verification hangs
# Signals that a process sends to itself by what it executes; all others come from outside.
FAULTS = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGTRAP")


def run(operator: str, backend: str, device: "torch.device", dtype: "torch.dtype") -> tuple[str, bool]:
    """(what `verification.compare` returns, or how the process ended; whether that is the kernel's doing).

    Args:
        operator, backend: which kernel. device, dtype: of the operator's first argument.
    """
    if not sys.executable or getattr(sys, "frozen", False):  # the executable is no Python interpreter
        return "its verification did not finish, and cannot be repeated in this program", False
    package = [PACKAGE, str(sys.modules[PACKAGE].__file__)]
    arguments = [*package, operator, backend, str(device), str(dtype).removeprefix("torch.")]
    try:
        done = subprocess.run(
            [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"its verification takes longer than {SECONDS:.0f} s", True
    except OSError as error:
        return f"its verification did not finish, and cannot be repeated: {error}", False
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == 0 and last.startswith("verdict: "):
        return last.removeprefix("verdict: "), True
    if done.returncode >= 0:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        # 1 is an exception outside the kernel, such as of an import without enough memory.
        return f"its verification ended with exit code {done.returncode}: {reason[:200]}", done.returncode > 1
    name = signal.Signals(-done.returncode).name
    return f"its verification was ended by {name}", name in FAULTS
