"""Estimate the products that the inner loops of the kernels for arm64 do in a cycle, without such a processor.

    make neon && python scripts/arm64_loops.py                 of the kernels that it has compiled
    python scripts/arm64_loops.py conv2d spatial_attention     of some of them

It reads the loops of the compiled kernels that have at least 20 multiply-add instructions and few others, and prints
what llvm-mca's models of several processors take for them, with all data in the first cache. Needs llvm-mca (apt
install llvm-19) and aarch64-linux-gnu-objdump (binutils-aarch64-linux-gnu).
"""

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build/cpu-arm64"
MCA, OBJDUMP = "llvm-mca-19", "aarch64-linux-gnu-objdump"
PROCESSORS = ("neoverse-n1", "neoverse-v1", "neoverse-v2", "apple-m1")
DEFAULT = ("conv2d", "pointwise_conv2d", "spatial_attention", "window_attention")
LEAST_PRODUCTS, LEAST_SHARE = 20, 0.6  # multiply-add instructions of a loop, and their share of all
ITERATIONS = 200


def loops(assembly: str) -> list[list[str]]:
    """The bodies of backward branches in objdump's output, that have enough multiply-add instructions."""
    found: dict[str, int] = {}
    lines: list[str] = []
    bodies = []
    for line in assembly.splitlines():
        if not (instruction := re.match(r"\s+([0-9a-f]+):\t(.*)", line)):
            continue
        address, text = instruction[1], re.split(r" <|//", instruction[2])[0].rstrip()
        found[address] = len(lines)
        lines.append(text)
        branch = re.match(r"(b\.\w+|cbnz\s+\w+,)\s*([0-9a-f]+)$", text)
        if branch and branch[2] in found:
            body = lines[found[branch[2]] :]
            products = sum("fmla" in step for step in body)
            if products >= LEAST_PRODUCTS and products >= LEAST_SHARE * len(body):
                bodies.append([".L1:", *body[:-1], f"{branch[1]} .L1"])
    return bodies


def cycles(body: list[str], processor: str) -> float:
    """The cycles of one iteration, by llvm-mca."""
    command = [MCA, "-mtriple=aarch64", f"-mcpu={processor}", f"-iterations={ITERATIONS}"]
    done = subprocess.run(command, input="\n".join(body) + "\n", capture_output=True, text=True, check=True)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert total, done.stdout
    return int(total[1]) / ITERATIONS


def main() -> None:
    """Print a line for each loop."""
    for name in sys.argv[1:] or DEFAULT:
        command = [OBJDUMP, "-d", "--no-show-raw-insn", str(FOLDER / f"kernels_{name}.cpp.neon.o")]
        assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for body in {"\n".join(body): body for body in loops(assembly)}.values():
            products = sum("fmla" in step for step in body)
            rates = ", ".join(f"{processor} {products / cycles(body, processor):.2f}" for processor in PROCESSORS)
            print(f"{name}: {products} of {len(body) - 1} instructions multiply; in a cycle, {rates}")


if __name__ == "__main__":
    main()
