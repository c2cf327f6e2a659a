"""The nodes as ComfyUI imports, describes and runs them; stand-ins have the functions of its modules that they call."""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pipelines import fresh, photo, tensor_of

import resshift_fast.apps
from resshift_fast import Pipeline
from resshift_fast.apps.comfyui import nodes
from resshift_fast.models import catalog

FOLDER = Path(resshift_fast.apps.__file__).parent / "comfyui"


@pytest.fixture
def classes(tmp_path):
    """The node classes, by the way in which ComfyUI imports a copy of the folder in custom_nodes."""
    copy = tmp_path / "custom_nodes" / "resshift"
    copy.mkdir(parents=True)
    for file in FOLDER.glob("*.py"):
        (copy / file.name).write_bytes(file.read_bytes())
    name = str(copy).replace(".", "_x_")
    specification = importlib.util.spec_from_file_location(name, copy / "__init__.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    yield module.NODE_CLASS_MAPPINGS
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    del sys.modules[name]


def test_nodes_describe_themselves_as_comfyui_expects(classes):
    for node in classes.values():
        inputs = node.INPUT_TYPES()
        assert inputs.keys() <= {"required", "optional", "hidden"}
        named = {**inputs["required"], **inputs.get("optional", {})}
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert named.keys() == parameters.keys() - {"self"}
        for name in inputs.get("optional", {}):
            assert parameters[name].default is not inspect.Parameter.empty
        for kind, *options in named.values():
            assert isinstance(kind, str | list) and len(options) < 2
            for details in options:
                assert "default" in details
                assert not isinstance(kind, list) or details["default"] in kind
        assert isinstance(node.RETURN_TYPES, tuple) and isinstance(node.CATEGORY, str)


def run(classes, image, **options):
    (model,) = classes["ResShiftLoader"]().load("nano-x4", "cpu", "float32")
    options = {"seed": 3, "tile": 0, "overlap": 0, "batch_size": 0} | options
    return classes["ResShiftRestore"]().restore(model, image, **options)


def test_a_batch_of_images_is_restored(classes):
    image = torch.cat([tensor_of(photo(20, 17, seed=seed)) for seed in (0, 1)]).permute(0, 2, 3, 1)
    (restored,) = run(classes, image, tile=16)
    assert restored.shape == (2, 80, 68, 3) and restored.dtype == torch.float32 and restored.device.type == "cpu"
    pipe = Pipeline.from_pretrained("nano-x4", device="cpu")
    expected = pipe(image.permute(0, 3, 1, 2), seed=3, tile=16, progress=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-6)
    assert (run(classes, image, seed=4)[0] - restored).abs().max() > 0.01


def test_one_mask_serves_a_batch():
    pipe = fresh("inpaint", steps=1)
    image = torch.rand(2, 64, 64, 3)
    mask = torch.zeros(64, 64)
    mask[10:30, 20:40] = 1
    (restored,) = nodes.ResShiftRestore().restore(pipe, image, 0, 0, 0, 0, mask)
    known = mask == 0
    assert torch.equal(restored[:, known], image[:, known])
    assert (restored[:, ~known] != image[:, ~known]).any()


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """ComfyUI's modules, with its folder of models and what the bar showed."""
    paths, utils, management = ModuleType("folder_paths"), ModuleType("comfy.utils"), ModuleType("comfy.management")
    paths.models_dir, paths.folder_names_and_paths = str(tmp_path), {}

    def add(kind, folder):
        paths.folder_names_and_paths[kind] = ([folder], set())

    def files(kind):
        return sorted(p.name for p in Path(paths.folder_names_and_paths[kind][0][0]).glob("*"))

    paths.add_model_folder_path, paths.get_filename_list = add, files
    paths.get_full_path = lambda kind, name: str(Path(paths.folder_names_and_paths[kind][0][0]) / name)
    shown = []

    class ProgressBar:
        def __init__(self, total):
            shown.append(total)

        def update_absolute(self, done, total):
            shown.append((done, total))

    utils.ProgressBar, management.interrupted = ProgressBar, False

    def throw():
        if management.interrupted:
            raise InterruptedError

    management.throw_exception_if_processing_interrupted = throw
    modules = {"folder_paths": paths, "comfy": ModuleType("comfy"), "comfy.utils": utils}
    for name, module in (modules | {"comfy.model_management": management}).items():
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "resshift").mkdir()
    return tmp_path / "resshift", shown, management


def test_weights_are_those_in_comfyuis_folder(classes, comfy):
    folder, _, _ = comfy
    embedded = Path(resshift_fast.__file__).parent / "weights" / catalog.get("nano-x4").weights.filename
    (folder / "mine.safetensors").write_bytes(embedded.read_bytes())
    loader = classes["ResShiftLoader"]
    assert loader.INPUT_TYPES()["optional"]["weights"][0] == ["published", "mine.safetensors"]
    (pipe,) = loader().load("nano-x4", "cpu", "float32", "mine.safetensors")
    assert pipe.spec.name == "nano-x4"
    with pytest.raises(ValueError, match=r"../secret.pth is not in ComfyUI's folder models/resshift"):
        loader().load("nano-x4", "cpu", "float32", "../secret.pth")


def test_progress_is_shown_and_an_interruption_ends_the_work(classes, comfy):
    _, shown, management = comfy
    image = torch.rand(1, 16, 16, 3)
    run(classes, image)
    assert shown == [4, (1, 4), (2, 4), (3, 4), (4, 4)]
    management.interrupted = True
    with pytest.raises(InterruptedError):
        run(classes, image)
