#!/usr/bin/env python3
"""Check the types of the package with mypy, and those of what users write with mypy and pyright.

Both are set up in pyproject.toml. They are shown the package as it is installed, with kernels/ inside. The Python
examples of README.md are checked in a row, after the pictures and tensors that they take for granted. No network is
needed: pyright comes with its own Node.js.

    python scripts/check_types.py
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "out" / "types"
API = ROOT / "python_tests" / "typing" / "public_api.py"
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
    return re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def installed() -> Path:
    """The package as a wheel has it, made of links."""
    package = FOLDER / "resshift_fast"
    package.mkdir(parents=True, exist_ok=True)
    for link in package.iterdir():
        link.unlink()
    for path in (*(ROOT / "resshift_fast").iterdir(), ROOT / "kernels"):
        if path.suffix in ("", ".py", ".typed") and path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    return package


def check(*command: str) -> int:
    """Run a checker beside the package; returns its exit code."""
    run = subprocess.run([sys.executable, "-m", *command], cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=False)
    output = run.stdout.replace("resshift_fast/kernels/", "kernels/").replace(f"{ROOT}/", "")
    print(f"{command[0]}: {output.strip()}")
    return run.returncode


def main() -> int:
    package, readme = installed(), FOLDER / "readme.py"
    readme.write_text("\n".join([GIVEN, *examples((ROOT / "README.md").read_text("utf-8"))]), encoding="utf-8")
    settings = ROOT / "pyproject.toml"
    mypy = ("mypy", "--config-file", str(settings), "--cache-dir", str(ROOT / ".mypy_cache"))
    failed = [
        check(*mypy, package.name, readme.name, str(API)),
        check("pyright", "--pythonpath", sys.executable, "--project", str(settings)),
    ]
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
