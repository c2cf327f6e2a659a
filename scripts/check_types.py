#!/usr/bin/env python3
"""Check the types of the package with mypy, and those of user code with mypy and pyright.

Both are configured in pyproject.toml. They see the package as it is installed, with kernels/ inside. The Python
examples of README.md and of each page of docs/ are checked as one file each, after definitions of the images and
tensors that they use. No network is needed: pyright comes with its own Node.js.

    python scripts/check_types.py
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "out" / "types"
EXAMPLES = FOLDER / "examples"
API = ROOT / "python_tests" / "typing" / "public_api.py"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # a code block: (language, code)
GIVEN = """\
import numpy as np
import torch
from PIL import Image

from resshift_fast import ops, use_backend

array = np.zeros((8, 8, 3), np.uint8)
pil_image = Image.fromarray(array)
tensor = x = weight = bias = scale = shift = torch.zeros(1)
"""


def examples(page: str) -> list[str]:
    """The Python code blocks of a page in Markdown."""
    return [code for language, code in FENCED.findall(page) if language == "python"]


def programs() -> dict[str, str]:
    """Name of a module to the examples of a page, for all pages that have any."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {page.stem.lower().replace("-", "_"): examples(page.read_text(encoding="utf-8")) for page in pages}
    return {f"{name}_page": "\n".join([GIVEN, *codes]) for name, codes in found.items() if codes}


def written() -> list[Path]:
    """Write the programs to files, after deleting old ones."""
    EXAMPLES.mkdir(parents=True, exist_ok=True)
    for path in EXAMPLES.glob("*.py"):
        path.unlink()
    for name, program in programs().items():
        (EXAMPLES / f"{name}.py").write_text(program, encoding="utf-8")
    return sorted(EXAMPLES.glob("*.py"))


def installed() -> Path:
    """The package laid out as in a wheel, with symbolic links."""
    package = FOLDER / "resshift_fast"
    package.mkdir(parents=True, exist_ok=True)
    for link in package.iterdir():
        link.unlink()
    for path in (*(ROOT / "resshift_fast").iterdir(), ROOT / "kernels"):
        if path.suffix in ("", ".py", ".typed") and path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    return package


def check(*command: str) -> int:
    """Run a checker in the folder of the package; returns its exit code."""
    run = subprocess.run([sys.executable, "-m", *command], cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=False)
    output = run.stdout.replace("resshift_fast/kernels/", "kernels/").replace(f"{ROOT}/", "")
    print(f"{command[0]}: {output.strip()}")
    return run.returncode


def main() -> int:
    package, pages = installed(), written()
    settings = ROOT / "pyproject.toml"
    mypy = ("mypy", "--config-file", str(settings), "--cache-dir", str(ROOT / ".mypy_cache"))
    failed = [
        check(*mypy, package.name, *map(str, pages), str(API)),
        check("pyright", "--pythonpath", sys.executable, "--project", str(settings)),
    ]
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
