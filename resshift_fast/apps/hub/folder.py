"""The folder: a project for `kernel-builder` (build.toml, torch-ext), and its builds, which `kernels` loads.

Layout and metadata are those of the Hub's requirements (huggingface.co/docs/kernels/kernel-requirements). There is
nothing to compile, so a build is the sources and a file of metadata, and equal but for its name for all devices. What
is loaded has the name of its metadata's `id`, which holds a hash of the sources: so have its operators, and two
versions in one process do not meet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from resshift_fast import __version__
from resshift_fast.apps.hub.relative import PACKAGE, relative
from resshift_fast.core.files import write_error

NAME = "resshift-fast-kernels"
MODULE = NAME.replace("-", "_")
DEVICES = ("cpu", "cuda")  # "backends" of kernel-builder
VERSION = int(__version__.partition(".")[0])  # by the Hub's convention, 0 is for what may still change
LICENSE = "Apache-2.0"

_ROOMS = ("ops", "backends", "kernels", "diffusion", "core")
# Compiles kernels before their first launch, for pipelines.
_LEFT_OUT = "kernels.ahead"
_FACES = {f"{PACKAGE}.apps.hub.face": "", f"{PACKAGE}.apps.hub.layers": "layers"}

_FLAKE = """{
  description = "Operators of ResShift";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder }: kernel-builder.lib.genKernelFlakeOutputs { inherit self; path = ./.; };
}
"""
_CARD = """---
library_name: kernels
license: apache-2.0
---
# Operators of ResShift

Group norm with conditioning and SiLU, attention within shifted windows, the Swin MLP, vector quantization, convolutions
and the steps of a residual-shift diffusion, in Triton for NVIDIA GPUs from compute capability 8.0 on, and in plain
PyTorch elsewhere. Each kernel is compared with float64 before its first use. All have gradients, and work with
torch.compile.

    from kernels import get_kernel
    kernel = get_kernel("{repository}", version={version}, trust_remote_code=True)
    y = kernel.group_norm(x, 32, weight, bias, activation="silu")

Functions: {functions}. Layers: {layers}.

Made with `resshift-fast export kernels` from the sources of resshift-fast {release}, of which the imports are changed.
"""
# Where earlier versions of `kernels` look for a build: in a folder of this name within that of the device.
_INNER = '''"""The module in the folder above, for versions of `kernels` that look for it here."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if {id!r} not in sys.modules:
    _spec = spec_from_file_location({id!r}, Path(__file__).resolve().parents[1] / "__init__.py")
    sys.modules[{id!r}] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[{id!r}])
globals().update({{name: getattr(sys.modules[{id!r}], name) for name in sys.modules[{id!r}].__all__}})
__all__ = list(sys.modules[{id!r}].__all__)
'''


def write(folder: str | Path, repository: str | None = None) -> list[str]:
    """Write the operators to a folder that `kernels.get_local_kernel` loads, and that can be uploaded to the Hub.

    Args:
        folder: which must not exist.
        repository: OWNER/NAME on the Hub, for build.toml and the card; None leaves it open.

    Returns:
        The builds in it, such as "torch-cpu".

    Raises:
        FileExistsError: if the folder exists. OSError: if it can't be written; then nothing is left.
        ValueError: for a repository that is not OWNER/NAME.
    """
    if repository is not None and (repository.count("/") != 1 or not all(repository.split("/"))):
        raise ValueError(f"the repository is {repository!r}, expected OWNER/NAME")
    folder = Path(folder)
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists already; remove it or name another folder")
    scratch = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        scratch.mkdir()
        for name, data in project(repository).items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(data)
        scratch.rename(folder)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError):
            raise write_error(error, folder) from error
        raise
    return [f"torch-{device}" for device in DEVICES]


def project(repository: str | None = None) -> dict[str, bytes]:
    """Path to content of all files of the folder; see `write`."""
    code = sources()
    digest = hashlib.sha256()
    for name in sorted(code):
        digest.update(name.encode() + b"\0" + code[name] + b"\0")
    unique = digest.hexdigest()[:7]
    files = {f"torch-ext/{MODULE}/{name}": data for name, data in code.items()}
    files |= {
        "build.toml": _build_toml(repository).encode(),
        "flake.nix": _FLAKE.encode(),
        "CARD.md": _card(repository).encode(),
        "LICENSE": _license(),
    }
    for device in DEVICES:
        name = f"_{MODULE}_{device}_{unique}"
        build = {**code, f"{MODULE}/__init__.py": _INNER.format(id=name).encode()}
        build["metadata.json"] = _metadata(name, device, build)
        files |= {f"build/torch-{device}/{path}": data for path, data in build.items()}
    return files


def sources() -> dict[str, bytes]:
    """Path to content of the module's files: the operators, and all that they need, with relative imports."""
    paths = {name: Path(str(import_module(name).__file__)) for name in _FACES}
    homes = dict(_FACES)
    for room in _ROOMS:
        package = f"{PACKAGE}.{room}"
        for path in sorted(Path(import_module(package).__path__[0]).glob("*.py")):
            name = f"{package}.{path.stem}".removesuffix(".__init__")
            if name != f"{PACKAGE}.{_LEFT_OUT}":
                paths[name], homes[name] = path, name.removeprefix(f"{PACKAGE}.")
    found = {}
    for name, path in paths.items():
        home = homes[name]
        is_package = not home or path.name == "__init__.py"
        code = relative(path.read_text(encoding="utf-8"), home, homes, is_package=is_package)
        place = home.split(".") if home else []
        found["/".join([*place, "__init__"] if is_package else place) + ".py"] = code.encode()
    return found


def _metadata(name: str, device: str, files: Mapping[str, bytes]) -> bytes:
    hashes = {path: base64.b64encode(hashlib.sha256(data).digest()).decode() for path, data in sorted(files.items())}
    found = {
        "id": name,
        "name": NAME,
        "version": VERSION,
        "license": LICENSE,
        "python-depends": [],
        "backend": {"type": device},
        "digest": {"algorithm": "sha256", "files": hashes},
    }
    return (json.dumps(found, indent=2) + "\n").encode()


def _build_toml(repository: str | None) -> str:
    devices = ", ".join(f'"{device}"' for device in DEVICES)
    lines = [
        "[general]",
        f'name = "{NAME}"',
        f"version = {VERSION}",
        "edition = 5",
        f'license = "{LICENSE}"',
        f"backends = [{devices}]",
    ]
    if repository is not None:
        lines += ["", "[general.hub]", f'repo-id = "{repository}"']
    return "\n".join([*lines, "", "[torch-noarch]", ""])


def _card(repository: str | None) -> str:
    from resshift_fast.apps.hub import face, layers

    functions = ", ".join(f"`{name}`" for name in face.__all__ if name != "layers")
    classes = [name for name, value in vars(layers).items() if getattr(value, "__module__", "") == layers.__name__]
    return _CARD.format(
        repository=repository or f"OWNER/{NAME}",
        version=VERSION,
        functions=functions,
        layers=", ".join(f"`{name}`" for name in classes),
        release=__version__,
    )


def _license() -> bytes:
    """The text of the licence, as it is installed."""
    name = PACKAGE.replace("_", "-")
    try:
        files = distribution(name).files or []
        found = next(Path(str(file.locate())) for file in files if file.name == "LICENSE")
    except (PackageNotFoundError, StopIteration):
        raise FileNotFoundError(f"the licence of {name} is missing; install it with pip") from None
    return found.read_bytes()
