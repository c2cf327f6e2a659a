"""The operators as a folder for Hugging Face's `kernels`: its sources, its metadata, and what is loaded from it."""

import ast
import json
import sys
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from other_projects import needs

from resshift_fast import ops, use_backend
from resshift_fast.apps.hub import folder as hub
from resshift_fast.apps.hub.relative import relative
from resshift_fast.diffusion.schedule import Schedule

ROOT = Path(__file__).resolve().parents[2]
HOMES = {"resshift_fast.ops": "ops", "resshift_fast.ops.checks": "ops.checks", "resshift_fast.core.files": "core.files"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "kernels"
    assert hub.write(path, "me/kernels") == ["torch-cpu", "torch-cuda"]
    return path


@pytest.fixture(scope="module")
def kernels():
    """Hugging Face's package, which a folder of this repository would hide."""
    needs("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [p for p in sys.path if Path(p).resolve() != ROOT])
        patch.setenv("HF_HUB_OFFLINE", "1")
        import kernels
    assert hasattr(kernels, "get_local_kernel"), kernels.__path__
    return kernels


class Absent:
    """Finds no module of this package."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "resshift_fast":
            raise ModuleNotFoundError(f"there is no {name} here")


@contextmanager
def without_the_package():
    """Within the block this package can't be imported, as where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "resshift_fast"]:
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
        yield


@pytest.fixture(scope="module")
def kernel(kernels, exported):
    """The module that was loaded where this package can't be imported."""
    with without_the_package():
        return kernels.get_local_kernel(exported)


def calls(ops):
    """Results of operators, some with gradients, for the same arguments."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    x = (normal(2, 8, 6, 4) - 2.3).requires_grad_()
    weight, bias = normal(8).requires_grad_(), normal(8)
    normed = ops.group_norm(x, 4, weight, bias, scale=normal(2, 8), shift=normal(2, 8), activation="silu")
    normed.square().sum().backward()
    qkv, table = normal(1, 4, 4, 48), normal(9, 1)
    attention = ops.window_attention(qkv, table, num_heads=1, window_size=2, shift_size=1)
    quantized, indices = ops.vector_quantize(normal(1, 3, 4, 5), normal(7, 3))
    row = Schedule().table()[2]
    latents = normal(3, 2, 3, 4, 4).unbind(0)
    step = ops.posterior_step(*latents, row, torch.tensor([7, 8]), torch.tensor(1))
    return [normed, x.grad, weight.grad, attention, quantized, indices, *step]


@pytest.mark.parametrize(
    ("module", "is_package", "line", "expected"),
    [
        ("ops", True, "from resshift_fast.ops import checks", "from . import checks"),
        ("ops.x", False, "from resshift_fast.ops.checks import a, b", "from .checks import a, b"),
        ("ops.x", False, "from resshift_fast.core import files as f", "from ..core import files as f"),
        ("", True, "from resshift_fast.core.files import (\n    a,\n)", "from .core.files import (\n    a,\n)"),
        ("x", False, "from resshift_fast import ops", "from . import ops"),
        ("x", False, "def f():\n    from resshift_fast.ops import y", "def f():\n    from .ops import y"),
        (
            "x",
            False,
            "import torch  # from resshift_fast.ops import y",
            "import torch  # from resshift_fast.ops import y",
        ),
    ],
)
def test_imports_become_relative(module, is_package, line, expected):
    assert relative(line, module, HOMES, is_package=is_package) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import resshift_fast.ops", "x, line 1: write `from resshift_fast import ...`"),
        ("\nfrom resshift_fast.cli import main", "x, line 2: main of resshift_fast.cli are not all moved together"),
        ("from resshift_fast import ops, cli", "ops, cli of resshift_fast are not all moved together"),
    ],
)
def test_imports_that_would_not_be_found_are_errors(line, message):
    with pytest.raises(ValueError, match=message):
        relative(line, "x", HOMES)


def test_what_is_imported_is_the_module_itself_torch_triton_or_of_python(exported):
    others, root = {}, exported / "torch-ext" / hub.MODULE
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"torch", "triton"}:
                others.setdefault(name, set()).add(path.relative_to(root).as_posix())
    assert others == {"numpy": {"diffusion/schedule.py"}}  # which nothing but its user imports


def test_build_toml_and_metadata_are_as_kernels_reads_them(kernels, exported, capsys):
    from kernels._rust import Build, Digest, DigestAlgorithm
    from kernels.cli.info import print_kernel_info
    from kernels.validate import AllValidator, default_metadata_validators

    assert {str(one) for one in Build.open(exported).general.backends} == {"cpu", "cuda"}
    for device in hub.DEVICES:
        build = exported / "build" / f"torch-{device}"
        metadata = kernels.Metadata.read_from_file(build / "metadata.json")
        assert metadata.name.python_name == hub.MODULE and str(metadata.backend.backend_type) == device
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, build))
        AllValidator(default_metadata_validators()).validate_metadata(metadata=metadata, variant=build.name)
    print_kernel_info(str(exported), json_output=True)
    assert json.loads(capsys.readouterr().out)["backends"] == ["cpu", "cuda"]
    card = (exported / "CARD.md").read_text("utf-8")
    assert 'get_kernel("me/kernels", version=0' in card and "`GroupNormSiLU`" in card and "`swin_mlp`" in card
    assert "Apache License" in (exported / "LICENSE").read_text("utf-8")


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_results_are_those_of_the_package(kernel, backend, monkeypatch):
    monkeypatch.setenv("RESSHIFT_FAST_VERIFY", "0")  # it takes half a minute in Triton's interpreter
    with use_backend(backend):
        expected = calls(ops)
    with without_the_package(), kernel.use_backend(backend):
        ours = calls(kernel)
    assert len(ours) == len(expected) and all(a.equal(b) for a, b in zip(ours, expected, strict=True))


def test_it_stands_beside_the_package(kernel):
    assert kernel.ops is not ops and kernel.group_norm.__module__.startswith(f"{kernel.__name__}.")
    for name in ("group_norm", "window_attention"):
        own, packaged = getattr(getattr(torch.ops, kernel.__name__), name), getattr(torch.ops.resshift_fast, name)
        assert own.default is not packaged.default and str(own.default).startswith(kernel.__name__)
    assert set(kernel.__all__) - {"Schedule", "layers", "use_backend"} == set(ops.__all__)
    assert kernel.Schedule(steps=4).table().equal(Schedule(steps=4).table())
    with pytest.raises(AttributeError, match="there is no 'sample'; there are Schedule"):
        kernel.sample  # noqa: B018


def test_a_verification_is_repeated_with_its_own_kernels(kernel, monkeypatch):
    trial = sys.modules[f"{kernel.__name__}.backends.trial"]
    started = []
    monkeypatch.setattr(trial.subprocess, "run", lambda command, **_: started.append(command) or pytest.skip("started"))
    with pytest.raises(pytest.skip.Exception):
        trial.run("group_norm", "triton", torch.device("cpu"), torch.float32)
    assert started[0][3:5] == [kernel.__name__, kernel.__file__]


def test_earlier_versions_find_it_too(kernel, exported):
    spec = spec_from_file_location("earlier", exported / "build" / "torch-cpu" / hub.MODULE / "__init__.py")
    inner = module_from_spec(spec)
    spec.loader.exec_module(inner)
    assert inner.__all__ == kernel.__all__ and inner.group_norm is kernel.group_norm


class Block(torch.nn.Module):
    """A group norm of PyTorch and one with SiLU, in a model that `kernelize` changes."""

    def __init__(self, kernels):
        super().__init__()

        @kernels.use_kernel_forward_from_hub("GroupNorm")
        class Norm(torch.nn.GroupNorm):
            pass

        @kernels.use_kernel_forward_from_hub("GroupNormSiLU")
        class Activated(torch.nn.GroupNorm):
            def forward(self, input):
                return torch.nn.functional.silu(super().forward(input))

        self.layers = torch.nn.Sequential(Norm(4, 8), Activated(2, 8))
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))

    def forward(self, x):
        return self.layers(x)


def test_layers_replace_those_of_a_model(kernels, kernel, exported, monkeypatch):
    names = ("GroupNorm", "GroupNormSiLU")
    mapping = {name: {"cpu": kernels.LocalLayerRepository(repo_path=exported, layer_name=name)} for name in names}
    model, x = Block(kernels).eval(), torch.randn(2, 8, 5, 3)
    expected, vectors = model(x), model.layers[0](x[..., 0, 0])
    with kernels.use_kernel_mapping(mapping):
        kernels.kernelize(model, mode=kernels.Mode.INFERENCE | kernels.Mode.TORCH_COMPILE, device="cpu")
    taken = []
    layers = sys.modules[f"{kernel.__name__}.layers"]
    monkeypatch.setattr(layers, "group_norm", lambda *a, **k: taken.append(k) or kernel.group_norm(*a, **k))
    torch.testing.assert_close(model(x), expected)
    assert taken == [{}, {"activation": "silu"}]
    assert model.layers[0](x[..., 0, 0]).equal(vectors) and len(taken) == 2  # not an image: PyTorch's own


def test_what_can_not_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=f"the folder {tmp_path}/missing does not exist"):
        hub.write(tmp_path / "missing" / "kernels")
    with pytest.raises(ValueError, match="the repository is 'me', expected OWNER/NAME"):
        hub.write(tmp_path / "kernels", "me")
    monkeypatch.setattr(hub, "project", lambda repository: {"a": b"1", "b": "no bytes"})
    with pytest.raises(TypeError):
        hub.write(tmp_path / "kernels")
    assert not [*tmp_path.iterdir()]
