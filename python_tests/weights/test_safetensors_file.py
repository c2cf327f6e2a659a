"""Safetensors are read as the format's own library reads them, and any kind of weights with the memory of one copy."""

import json
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from resshift_fast.weights import archives, safetensors_file
from resshift_fast.weights.checkpoints import CheckpointError, read_state_dict


def test_every_type_and_shape(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, dtype in safetensors_file._DTYPES.items():
        for shape in ((3, 5), (), (0, 4), (7,)):
            state[f"{name}{list(shape)}"] = torch.randint(0, 100, shape, generator=generator).to(dtype)
    save_file(state, tmp_path / "w", {"model": "any"})
    ours, theirs = safetensors_file.read(tmp_path / "w"), load_file(tmp_path / "w")
    assert ours.keys() == theirs.keys() == state.keys()
    for key, tensor in state.items():
        assert ours[key].dtype == tensor.dtype and ours[key].shape == tensor.shape
        for other in (theirs[key], tensor):
            assert ours[key].reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8))


def packed(table, size, more=b""):
    header = (json.dumps(table) if not isinstance(table, str) else table).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size) + more


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (packed({"a": ENTRY}, 23), "expected 24"),
        (packed({"a": ENTRY}, 25), "expected 24"),
        (packed({"a": ENTRY | {"data_offsets": [0, 20]}}, 20), "do not fit its shape"),
        (packed({"a": ENTRY | {"data_offsets": [4, 28]}}, 28), "does not begin where"),
        (packed({"a": ENTRY, "b": ENTRY}, 24), "does not begin where"),
        (packed({"a": ENTRY | {"shape": [2, -3]}}, 24), "no valid shape"),
        (packed({"a": ENTRY | {"shape": [2, True]}}, 24), "no valid shape"),
        (packed({"a": ENTRY | {"shape": [1 << 61, 1 << 61, 0], "data_offsets": [0, 0]}}, 0), ""),
        (packed({"a": ENTRY | {"dtype": "F4"}}, 24), "type F4, which is not supported"),
        (packed({"a": ENTRY | {"dtype": ["F32"]}}, 24), "not supported"),
        (packed({"a": 5}, 24), "no type, shape and place"),
        (packed('{"a":' + "[" * 100_000, 24), "no JSON"),
        (packed('{"a": {}, "a": {}}', 0), "occurs twice"),
        (packed('{"a": ', 0), "Expecting value"),
        ((1 << 60).to_bytes(8, "little") + b"{" + bytes(100), "a header of"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "a header of"),
    ],
    ids=range(16),
)
def test_damage_is_one_line(tmp_path, content, reason):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is truncated or damaged .*{reason}") as error:
        read_state_dict(tmp_path / "w")
    assert "\n" not in str(error.value)


def peak_memory(function, *args):
    """Bytes of memory that a call needed at most beyond those before it, and its result."""

    def status(name):
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is the present size
    before = status("VmRSS")
    result = function(*args)
    return status("VmHWM") - before, result


def repacked(state, path):
    torch.save(state, path)
    with zipfile.ZipFile(path) as saved:
        content = {name: saved.read(name) for name in saved.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(f"folder/{name}", data)


def legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("save", [save_file, torch.save, legacy, repacked], ids=lambda save: save.__name__)
def test_memory_of_one_copy(tmp_path, save, monkeypatch):
    monkeypatch.setattr(archives, "_SMALL", 1 << 20)
    state = {f"w{i}": torch.full((1 << 20,), i / 7) for i in range(16)}  # 64 MB
    save(state, tmp_path / "w")
    del state
    read_state_dict(tmp_path / "w").clear()  # what torch keeps is not counted
    peak, read = peak_memory(read_state_dict, tmp_path / "w")
    assert sum(tensor.nbytes for tensor in read.values()) == 1 << 26
    assert peak < 1.25 * (1 << 26), f"{peak / 1e6:.0f} MB"
