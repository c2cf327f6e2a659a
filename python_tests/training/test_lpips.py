"""LPIPS against a few lines of the formula in float64, and the files that its weights come from."""

import zipfile

import pytest
import torch
from lpips_formula import formula, random_weights

from resshift_fast.training.lpips import LPIPS, VGG16, read_linear
from resshift_fast.weights.checkpoints import CheckpointError


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def module(weights):
    module = LPIPS()
    module.load(*weights)
    return module


@pytest.mark.parametrize("height, width", [(16, 16), (33, 18)])
def test_distance_and_gradient_are_those_of_the_formula(height, width, module, weights):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 3, height, width, generator=generator) * 2 - 1 for _ in range(2))
    a.requires_grad_()
    ours = module(a, b)
    expected = formula(a, b, *weights)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(ours.sum(), a)
    (wanted,) = torch.autograd.grad(expected.sum(), a)
    assert (gradient - wanted).norm() < 1e-4 * wanted.norm()


def test_equal_images_have_no_distance_and_a_finite_gradient(module):
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    distance = module(image, image.detach())
    distance.sum().backward()
    assert distance.item() == 0 and torch.isfinite(image.grad).all()


def test_a_pixel_without_activations_has_a_finite_gradient(module):
    silent = LPIPS()
    silent.load_state_dict(module.state_dict() | {"features.2.bias": torch.full((64,), -1e6)})
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    silent(image, torch.rand(1, 3, 16, 16)).sum().backward()
    assert torch.isfinite(image.grad).all()


def test_weights_are_frozen(module):
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("shapes", [((1, 3, 15, 20), (1, 3, 15, 20)), ((1, 1, 16, 16), (1, 1, 16, 16))])
def test_other_shapes_are_refused(shapes, module):
    with pytest.raises(ValueError, match=r"at least 16 pixels, got \(1"):
        module(*(torch.zeros(shape) for shape in shapes))


def test_reads_files_and_wheels(weights, tmp_path, module):
    vgg, linear = weights
    torch.save(vgg, tmp_path / "vgg16.pth")
    torch.save(linear, tmp_path / "linear.pth")
    with zipfile.ZipFile(tmp_path / "lpips-0.1.4-py3-none-any.whl", "w") as wheel:
        wheel.write(tmp_path / "linear.pth", "lpips/weights/v0.1/vgg.pth")
    for name in ("linear.pth", "lpips-0.1.4-py3-none-any.whl"):
        read = LPIPS.from_files(tmp_path / "vgg16.pth", tmp_path / name)
        assert all(torch.equal(value, module.state_dict()[key]) for key, value in read.state_dict().items())


def test_reads_the_installed_package(weights, tmp_path, monkeypatch):
    folder = tmp_path / "lpips" / "weights" / "v0.1"
    folder.mkdir(parents=True)
    (tmp_path / "lpips" / "__init__.py").write_text("raise ImportError('must not be imported')")
    torch.save(weights[1], folder / "vgg.pth")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_linear().keys() == weights[1].keys()


def test_a_missing_package_and_other_files_are_named(tmp_path, monkeypatch, weights):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install lpips"):
        read_linear()
    (tmp_path / "other.whl").write_bytes(b"text")
    with pytest.raises(CheckpointError, match=r"other.whl is no wheel of version 0.1 of the lpips package"):
        read_linear(tmp_path / "other.whl")
    with pytest.raises(CheckpointError, match=r"linear.0"):
        LPIPS().load(weights[0], {}, "linear.pth")


def test_downloads_torchvisions_file(weights, tmp_path, monkeypatch):
    torch.save(weights[0], tmp_path / "vgg16.pth")
    torch.save(weights[1], tmp_path / "linear.pth")
    asked = []
    monkeypatch.setattr("resshift_fast.weights.download.fetch", lambda file, *_, **__: asked.append(file) or vgg_file)
    vgg_file = tmp_path / "vgg16.pth"
    LPIPS.from_files(linear=tmp_path / "linear.pth")
    assert asked == [VGG16] and VGG16.sha256.startswith("397923af")
