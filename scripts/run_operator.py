"""One call of an operator between cudaProfilerStart and cudaProfilerStop, for scripts/profile_ncu.sh.

    python scripts/run_operator.py group_norm --dtype bfloat16

The cases are those of benchmarks/operators.py. The call is warmed up, which verifies and autotunes its kernels, and
compared with plain PyTorch, so that a wrong kernel is not profiled.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import operator_measure as measure  # noqa: E402
import torch  # noqa: E402
from operator_arguments import OPERATORS  # noqa: E402
from operator_cases import CASES, Case  # noqa: E402
from operators import full_float32  # noqa: E402

from resshift_fast.cli import console  # noqa: E402
from resshift_fast.core import devices  # noqa: E402
from resshift_fast.pipeline import DTYPES  # noqa: E402

WARM_UP = 3


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _options(argv)
    console.prepare_streams()
    try:
        cases = matching(args.operator, args.case, args.latent, args.batch)
        if args.list:
            for case in cases:
                print(f"{case.label(args.latent, args.batch)}: {case.where}")
            return 0
        with full_float32():
            run(cases[0], devices.usable_device(args.device), args)
    except ValueError as error:
        console.report(error)
        return 1
    return 0


def matching(operator: str, text: str, latent: int, batch: int) -> list[Case]:
    """The cases of an operator whose description contains a text.

    Raises:
        ValueError: for an unknown operator, or if there is no such case.
    """
    if operator not in OPERATORS:
        raise ValueError(f"unknown operator {operator!r}, expected one of {', '.join(sorted(OPERATORS))}")
    found = [c for c in CASES if c.op == operator and text in f"{c.label(latent, batch)}: {c.where}"]
    if not found:
        raise ValueError(f"no case of {operator} contains {text!r}; --list without --case shows them all")
    return found


def run(case: Case, device: torch.device, args: argparse.Namespace) -> None:
    """Warm up and check the call, then run it once more while the profiler records.

    Raises:
        ValueError: for a call whose result is wrong.
    """
    operator = OPERATORS[case.op]
    arguments = case.arguments(device, DTYPES[args.dtype], args.latent, args.batch)
    names, weights = operator.differentiable, None
    if args.backward:
        with torch.no_grad():
            weights = measure.output_weights(measure.tensors(operator.plain(**arguments)), DTYPES[args.dtype])
    plain = measure.results(operator.plain, arguments, names, weights)
    exact = measure.results(operator.plain, measure.in_double(arguments), names, weights)
    check = measure.compare(measure.results(operator.public, arguments, names, weights), plain, exact)
    if check.problem:
        raise ValueError(f"{case.op}: {check.problem}")
    prepare = measure.ready(operator.public, arguments, names, weights)
    for _ in range(WARM_UP):
        prepare()()
    call = prepare()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    call()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    direction = "backward" if args.backward else "forward"
    print(f"{case.op}-{case.label(args.latent, args.batch)} {args.dtype} {direction} on {device}: {case.where}")


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operator", help="As in resshift_fast.ops.")
    parser.add_argument("--case", default="", metavar="TEXT", help="First case whose description contains TEXT.")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="Default: bfloat16.")
    parser.add_argument("--latent", type=int, default=64, metavar="N", help="Side of the latent. Default: 64.")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="Images. Default: 1.")
    parser.add_argument("--device", help="Default: cuda if available, else cpu.")
    parser.add_argument("--backward", action="store_true", help="The backward pass instead of the forward one.")
    parser.add_argument("--list", action="store_true", help="Print the cases and exit.")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
