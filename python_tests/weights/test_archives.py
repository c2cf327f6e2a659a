"""Archives of torch.save: packed again by other programs, damaged, or inflating without end; keys under a prefix."""

import io
import zipfile

import pytest
import torch
from torch import nn

from resshift_fast.weights import archives, checkpoints
from resshift_fast.weights.checkpoints import CheckpointError, check_whole, load_into, read_state_dict

WEIGHTS = {"a.weight": torch.randn(40, 30), "b": torch.arange(7), "half": torch.randn(3).bfloat16()}


def saved(tree=WEIGHTS):
    file = io.BytesIO()
    torch.save(tree, file)
    return zipfile.ZipFile(file)


def pack(path, names, compression=zipfile.ZIP_DEFLATED, folders=False, tree=WEIGHTS):
    """Write torch's archive again, its folder renamed by `names`."""
    with saved(tree) as old, zipfile.ZipFile(path, "w", compression) as new:
        if folders:
            new.writestr("archive/", b"")
        for name in old.namelist():
            new.writestr(names(name.split("/", 1)[1]), old.read(name))
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("folder", ["archive/", "", "my weights/sub/"], ids=["one", "none", "two"])
@pytest.mark.parametrize("folders", [False, True], ids=["files", "folders"])
def test_packed_again(tmp_path, compression, folder, folders):
    state = read_state_dict(pack(tmp_path / "w.pth", lambda name: folder + name, compression, folders))
    assert state.keys() == WEIGHTS.keys()
    assert all(torch.equal(state[key], WEIGHTS[key]) and state[key].dtype == WEIGHTS[key].dtype for key in WEIGHTS)
    check_whole(tmp_path / "w.pth")


def test_an_archive_that_inflates_to_much_more_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_SMALL", 100_000)
    path = pack(tmp_path / "w.pth", "archive/{}".format, tree={"a": torch.zeros(1_000_000)})
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("read"))
    for function in (read_state_dict, check_whole):
        with pytest.raises(CheckpointError, match=r"its 0 MB inflate to 4 MB"):
            function(path)


def test_an_archive_that_lies_about_what_it_inflates_to(tmp_path):
    path = pack(tmp_path / "w.pth", "archive/{}".format, tree={"a": torch.zeros(1_000_000)})
    data = path.read_bytes()
    path.write_bytes(data.replace((4_000_000).to_bytes(4, "little"), (400).to_bytes(4, "little")))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_state_dict(path)


@pytest.mark.parametrize("packed", [False, True], ids=["saved", "packed"])
def test_a_changed_byte_is_noticed(tmp_path, packed):
    path = tmp_path / "w.pth"
    if packed:
        pack(path, "archive/{}".format, zipfile.ZIP_STORED, folders=True)
    else:
        torch.save(WEIGHTS, path)
    check_whole(path)
    data = bytearray(path.read_bytes())
    place = bytes(data).index(WEIGHTS["a.weight"].numpy().tobytes())
    data[place + 1000 : place + 1008] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged .*checksum of archive/data/0|w/data/0"):
        check_whole(path)


def test_two_archives_in_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"x")
        archive.writestr("b/data.pkl", b"x")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_state_dict(tmp_path / "w.pth")


def test_a_file_that_is_cut_while_its_weights_are_used(tmp_path):
    """Nothing is mapped: a mapped file that is cut ends the process."""
    for name, write in (("w.pth", torch.save), ("w.safetensors", lambda state, path: _save(state, path))):
        path = tmp_path / name
        write(WEIGHTS, path)
        state = read_state_dict(path)
        with open(path, "wb"):
            pass
        assert all(torch.equal(state[key], WEIGHTS[key]) for key in WEIGHTS)


def _save(state, path):
    checkpoints.save_safetensors(state, path, {})


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("attn_mask", torch.zeros(1, 2, 2))


@pytest.mark.parametrize("prefix", ["model.", "net_g.", "denoiser.", "model.diffusion_model.", "a.b.c."])
@pytest.mark.parametrize(
    "others", [{}, {"net_d.one.weight": torch.ones(9), "step": torch.ones(1)}], ids=["all", "part"]
)
def test_keys_under_a_prefix(prefix, others):
    theirs, ours = Network(), Network()
    load_into(ours, {prefix + key: value for key, value in theirs.state_dict().items()} | others, "w.pth")
    assert torch.equal(ours.one.weight, theirs.one.weight) and torch.equal(ours.two.bias, theirs.two.bias)


def test_averaged_weights_are_preferred():
    theirs, averaged, ours = Network(), Network(), Network()
    state = {f"net_g.{key}": value for key, value in theirs.state_dict().items()}
    state |= {f"net_g_ema.{key}": value for key, value in averaged.state_dict().items()}
    load_into(ours, state, "w.pth")
    assert torch.equal(ours.one.weight, averaged.one.weight)


def test_a_part_that_lacks_a_key_or_has_another_shape_does_not_fit():
    state = {f"model.{key}": value for key, value in Network().state_dict().items()}
    with pytest.raises(CheckpointError, match="does not fit"):
        load_into(Network(), {key: value for key, value in state.items() if key != "model.two.bias"}, "w.pth")
    with pytest.raises(CheckpointError, match="wrongly shaped"):
        load_into(Network(), state | {"model.two.bias": torch.ones(5)}, "w.pth")


def test_a_key_that_the_module_has_without_a_prefix_is_not_replaced():
    theirs, other, ours = Network(), Network(), Network()
    state = dict(theirs.state_dict()) | {f"model.{key}": value for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="unexpected"):
        load_into(ours, state, "w.pth")
