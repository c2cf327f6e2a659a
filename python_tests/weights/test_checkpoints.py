"""Weights files: their formats and layouts, errors of wrong files; a module is loaded completely or not at all."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from resshift_fast.weights.checkpoints import (
    CheckpointError,
    load_into,
    read_metadata,
    read_state_dict,
    save_safetensors,
    strip_prefixes,
)


class Block(nn.Module):
    """A shifted attention block's state: a table of weights and the two buffers that follow from the configuration."""

    def __init__(self, windows: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("attn_mask", torch.triu(torch.full((4, 4), -100.0), 1).repeat(windows, 1, 1))
        self.register_buffer("relative_position_index", torch.arange(16).reshape(4, 4))


class Denoiser(nn.Module):
    """The key names of a denoiser, small: input_blocks.0.0.weight is its first convolution."""

    def __init__(self, in_channels: int = 6, windows: int = 4):
        super().__init__()
        self.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(in_channels, 8, 3))])
        self.middle_block = Block(windows)
        self.norm = nn.BatchNorm2d(8)
        for parameter in self.parameters():
            nn.init.normal_(parameter)


class Autoencoder(nn.Module):
    def __init__(self, codes: int = 16):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3)
        self.decoder = nn.Conv2d(4, 3, 3)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, 3)


def copy_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and text
    return text


# Reading


def write_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "write, name",
    [
        pytest.param(torch.save, "w.pth", id="zip-pth"),
        pytest.param(torch.save, "w.safetensors", id="zip-misnamed-safetensors"),
        pytest.param(write_legacy, "w.ckpt", id="legacy-ckpt"),
        pytest.param(torch.save, "w.pt", id="zip-pt"),
        pytest.param(save_file, "w.safetensors", id="safetensors"),
        pytest.param(save_file, "w.pth", id="safetensors-misnamed-pth"),
    ],
)
def test_reads_every_format_whatever_its_name(tmp_path, write, name):
    state = {**copy_of(Denoiser()), "half": torch.randn(3).half(), "brain": torch.randn(3).bfloat16()}
    write(state, tmp_path / name)
    assert_same(read_state_dict(tmp_path / name), state)
    assert_same(read_state_dict(str(tmp_path / name)), state)


WEIGHTS, OTHER = {"a.weight": torch.tensor([1.0])}, {"a.weight": torch.tensor([2.0])}


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param(WEIGHTS, id="bare"),
        pytest.param(OrderedDict(WEIGHTS), id="ordered"),
        pytest.param({"params": OTHER, "params_ema": WEIGHTS}, id="params_ema-before-params"),
        pytest.param({"state_dict": OTHER, "params_ema": WEIGHTS, "ema": OTHER}, id="params_ema-before-all"),
        pytest.param({"model": OTHER, "ema": WEIGHTS}, id="ema-before-model"),
        pytest.param({"model": {"state_dict": {"params": WEIGHTS}}}, id="nested-three-times"),
        pytest.param({"state_dict": {"params": OTHER, "params_ema": WEIGHTS}}, id="params_ema-inside"),
        pytest.param({"ema": {"decay": 0.999, "updates": 3}, "model": WEIGHTS}, id="ema-without-tensors"),
        pytest.param({"params_ema": None, "params": WEIGHTS}, id="params_ema-none"),
        pytest.param({"model": WEIGHTS, "step": torch.tensor(3), "optimizer": {"state": {0: OTHER}}}, id="training"),
        pytest.param({**WEIGHTS, "epoch": 7, "note": "x"}, id="bare-beside-numbers"),
        pytest.param({"a.weight": nn.Parameter(torch.tensor([1.0]))}, id="parameter"),
    ],
)
def test_finds_the_state_dict(tmp_path, tree):
    torch.save(tree, tmp_path / "w.pth")
    state = read_state_dict(tmp_path / "w.pth")
    assert_same(state, WEIGHTS)
    assert not any(value.requires_grad for value in state.values())


prefixes = st.lists(st.sampled_from(["module.", "_orig_mod."]), max_size=5).map("".join)
# Names that contain a prefix's text elsewhere must keep it.
names = st.sampled_from(["conv.weight", "submodule.w", "a.module.bias", "x._orig_mod.w", "module", "module_.w", "w"])
wrappers = st.lists(st.sampled_from(["state_dict", "params_ema", "params", "model", "ema"]), max_size=4)


@given(prefix=prefixes, name=names)
def test_strips_prefixes_in_any_order(prefix, name):
    assert strip_prefixes(prefix + name) == name


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(names, st.tuples(prefixes, st.integers(0, 9)), min_size=1), layers=wrappers)
def test_any_nesting_and_mixture_of_prefixes(tmp_path, content, layers):
    expected = {name: torch.tensor([value]) for name, (_, value) in content.items()}
    tree = {prefix + name: torch.tensor([value]) for name, (prefix, value) in content.items()}
    for layer in layers:
        tree = {layer: tree, "step": 3}
    torch.save(tree, tmp_path / "w.pth")
    assert_same(read_state_dict(tmp_path / "w.pth"), expected)


def torchscript(path):
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    torch.jit.trace(Twice(), torch.ones(1)).save(path)


def pickled(path):
    path.write_bytes(pickle.dumps({"a": 1}))


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.png", "x")


def cut(write, keep):
    def make(path):
        write({"a": torch.randn(4000), "b": torch.randn(4000)}, path)
        os.truncate(path, int(path.stat().st_size * keep))

    return make


def saved(tree, **options):
    return lambda path: torch.save(tree, path, **options)


def holding(content):
    return lambda path: path.write_bytes(content)


CYCLE = {"step": 3}
CYCLE["model"] = CYCLE

FOREIGN = {
    "empty": (holding(b""), "is empty"),
    "one-byte": (holding(b"\x80"), "pickle"),
    "text": (holding("Prüfung: keine Gewichte\n".encode()), "text file"),
    "long-text-cut-in-a-character": (holding("é".encode() * 5000), "text file"),
    "html": (holding(b"\n<!DOCTYPE html><html><title>404</title></html>"), "web page"),
    "xml": (holding(b"\xef\xbb\xbf<?xml version='1.0'?><Error/>"), "web page"),
    "lfs-pointer": (holding(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "git-lfs pointer"),
    "png": (holding(b"\x89PNG\r\n\x1a\n" + bytes(50)), "PNG image"),
    "gzip": (holding(b"\x1f\x8b" + bytes(range(200))), "gzip"),
    "noise": (holding(bytes(range(255, 0, -1)) * 9), "neither"),
    "zip-of-photos": (zipped, "photo.png"),
    "empty-zip": (holding(b"PK\x05\x06" + bytes(18)), "without tensors"),
    "torchscript": (torchscript, "TorchScript"),
    "bare-pickle": (pickled, "pickle"),
    "truncated-zip": (cut(torch.save, 0.7), "truncated"),
    "truncated-zip-at-start": (cut(torch.save, 0.05), "truncated"),
    "truncated-legacy": (cut(write_legacy, 0.7), "truncated"),
    "truncated-safetensors": (cut(save_file, 0.7), "truncated"),
    "safetensors-header-only": (cut(save_file, 0.003), "truncated"),
    "other-protocol": (saved({"a": torch.ones(1)}, pickle_protocol=4), "another pickle protocol"),
    "list": (saved([torch.ones(1)]), "a list"),
    "no-tensors": (saved({"epoch": 3, "weights": "none"}), "epoch, weights"),
    "nothing": (saved({}), "nothing in it"),
    "cycle": (saved(CYCLE), "no state dict"),
    "integer-keys": (saved({0: torch.ones(1)}), "no state dict"),
    "sparse": (saved({"a": torch.eye(3).to_sparse()}), "sparse"),
    "meta": (saved({"a": torch.ones(3, device="meta")}), "without data"),
    "two-become-one": (saved({"module.a": torch.ones(1), "_orig_mod.a": torch.ones(1)}), "two keys"),
    "newline-in-key": (saved({"module.a\nb": torch.ones(1), "a\nb": torch.ones(1)}), r"'a\\nb'"),
}


@pytest.mark.parametrize("make, words", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*is deprecated", "ignore:Detected pickle protocol")
def test_says_what_a_wrong_file_is(tmp_path, make, words):
    path = tmp_path / "weights.pth"
    make(path)
    with pytest.raises(CheckpointError, match=words) as error:
        read_state_dict(path)
    assert str(path) in one_line(error)


def test_damaged_pickles_give_one_clear_error(tmp_path):
    """Whatever exception a flipped byte provokes in the unpickler, the caller sees only a CheckpointError."""
    buffer = io.BytesIO()
    write_legacy({"a.weight": torch.ones(2)}, buffer)
    whole, path, refused = buffer.getvalue(), tmp_path / "w.pth", 0
    for position in range(20, len(whole), 5):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            read_state_dict(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", ["folder", "missing"])
def test_folder_and_missing_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError if name == "missing" else CheckpointError, match=name) as error:
        read_state_dict(tmp_path / name)
    one_line(error)


def test_unreadable_file(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "w.pth"
    torch.save(WEIGHTS, path)
    monkeypatch.setattr("resshift_fast.weights.checkpoints.open", refuse, raising=False)
    with pytest.raises(CheckpointError, match="Permission denied"):
        read_state_dict(path)


class Shell:
    """What an attacker puts into a pickle: a command that runs when the file is opened."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, zip_format):
    mark = tmp_path / "ran"
    tree = {"state_dict": WEIGHTS, "extra": Shell(f"echo > '{mark}'")}
    torch.save(tree, tmp_path / "w.pth", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(CheckpointError, match=r"\w+\.system") as error:
        read_state_dict(tmp_path / "w.pth")
    one_line(error)
    assert not mark.exists()
    pickle.loads(pickle.dumps(tree["extra"]))
    assert mark.exists(), "the command does not work, so that it did not run above shows nothing"


# Loading


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_loads_and_casts(dtype):
    source, module = Denoiser(), Denoiser()
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in copy_of(source).items()}
    load_into(module, state, "w.pth")
    expected = {k: v.to(dtype).float() if v.is_floating_point() else v for k, v in copy_of(source).items()}
    assert_same(copy_of(module), expected)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_loads_from_file_into_module(tmp_path):
    source, module = Denoiser(), Denoiser()
    torch.save({"params_ema": {f"module._orig_mod.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pth")
    load_into(module, read_state_dict(tmp_path / "w.pth"), tmp_path / "w.pth")
    assert_same(copy_of(module), copy_of(source))


def test_derived_buffers_may_be_absent_or_of_another_resolution():
    source, module = Denoiser(windows=9), Denoiser(windows=4)
    mask = module.middle_block.attn_mask.clone()
    load_into(module, copy_of(source), "w.pth")
    assert torch.equal(module.middle_block.table, source.middle_block.table)
    assert torch.equal(module.middle_block.attn_mask, mask)

    bare = {k: v for k, v in copy_of(source).items() if not k.endswith(("attn_mask", "relative_position_index"))}
    other = Denoiser(windows=4)
    load_into(other, bare, "w.safetensors")
    assert_same(copy_of(other), copy_of(module))


def rejected(change, module=None, match=None):
    """Load a changed copy of a fitting state dict; the module must stay as it was. Returns the message."""
    module = module or Denoiser()
    before, state = copy_of(module), copy_of(Denoiser())
    change(state)
    with pytest.raises(CheckpointError, match=match) as error:
        load_into(module, state, "some/file.pth")
    assert_same(copy_of(module), before)
    assert "some/file.pth" in one_line(error)
    return one_line(error)


def test_names_the_first_mismatching_keys():
    def change(state):
        for i in range(5):
            state[f"extra.{i}"] = torch.ones(1)
        del state["norm.weight"]
        del state["input_blocks.0.0.bias"]
        state["middle_block.table"] = torch.ones(9, 3)

    message = rejected(change)
    assert "2 missing (input_blocks.0.0.bias, norm.weight)" in message
    assert "5 unexpected (extra.0, extra.1, extra.2, …)" in message
    assert "1 wrongly shaped (middle_block.table [9, 3] in the file, [9, 2] expected)" in message
    assert "Denoiser" in message


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("norm.weight", torch.ones(8, dtype=torch.int64), "int64 in the file, float32 expected"),
        ("norm.weight", torch.ones(8, dtype=torch.complex64), "complex64 in the file"),
        ("norm.num_batches_tracked", torch.tensor(1.0), "float32 in the file, int64 expected"),
        ("norm.num_batches_tracked", torch.tensor(True), "bool in the file"),
        ("middle_block.attn_mask", torch.zeros(4, 9, 9), "wrongly shaped"),
        ("middle_block.attn_mask", torch.zeros(4, 4, 4), "another attention mask"),
        ("middle_block.relative_position_index", torch.zeros(4, 4, dtype=torch.int64), "window order"),
        ("middle_block.relative_position_index", torch.zeros(9, 9, dtype=torch.int64), "wrongly shaped"),
        ("norm.attn_mask", torch.zeros(4, 4, 4), "1 unexpected"),
        ("norm.weight", torch.tensor([1.0] * 7 + [float("nan")]), "norm.weight is NaN"),
        ("norm.weight", torch.tensor([float("-inf")] + [1.0] * 7), "norm.weight is NaN or infinite"),
        ("evil\nkey" + "y" * 500, torch.ones(1), r"'evil\\nkey"),
    ],
    ids=lambda value: None if isinstance(value, torch.Tensor) else value[:40].replace("\n", "-"),
)
def test_rejects_one_wrong_entry(key, value, words):
    assert len(rejected(lambda state: state.update({key: value}), match=words)) < 600


def test_last_weight_not_finite_leaves_the_module_untouched():
    last = list(Denoiser().state_dict())[-2]
    rejected(lambda state: state[last].fill_(float("nan")), match=last)


def test_overflow_in_a_half_precision_module():
    rejected(lambda state: state["norm.weight"].fill_(1e6), Denoiser().half(), match="infinite in float16")


@pytest.mark.parametrize(
    "module, state, words",
    [
        pytest.param(Denoiser(), Autoencoder(), "an autoencoder where a denoiser belongs", id="wants-denoiser"),
        pytest.param(Autoencoder(), Denoiser(), "a denoiser where an autoencoder belongs", id="wants-autoencoder"),
        pytest.param(Denoiser(6), Denoiser(67), "67 instead of 6, so it looks like a denoiser for another", id="task"),
        pytest.param(Autoencoder(16), Autoencoder(8), "codebook: 8×3 instead of 16×3", id="codebook"),
        pytest.param(Denoiser(), nn.Linear(2, 2), "no key is shared", id="foreign"),
    ],
)
def test_hints_at_the_likely_mistake(module, state, words):
    before = copy_of(module)
    with pytest.raises(CheckpointError) as error:
        load_into(module, state.state_dict(), "w.pth")
    assert words in one_line(error)
    assert_same(copy_of(module), before)


def test_meta_module_is_refused():
    with pytest.raises(ValueError, match="meta device"):
        load_into(Denoiser().to("meta"), Denoiser().state_dict(), "w.pth")


# Writing


def test_files_without_metadata(tmp_path):
    save_safetensors(Denoiser(), tmp_path / "w.safetensors", {})
    torch.save(Denoiser().state_dict(), tmp_path / "w.pth")
    assert read_metadata(tmp_path / "w.safetensors") == read_metadata(tmp_path / "w.pth") == {}
    (tmp_path / "w.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match="w.safetensors is truncated or damaged"):
        read_metadata(tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError):
        read_metadata(tmp_path / "none.safetensors")


def test_saves_without_derived_buffers_and_loads_again(tmp_path):
    source, module, path = Denoiser(), Denoiser(), tmp_path / "w.safetensors"
    save_safetensors(source, path, {"model": "tiny", "licence": "own"})
    with safe_open(path, "pt") as handle:
        assert handle.metadata() == read_metadata(path) == {"model": "tiny", "licence": "own"}
        assert not [key for key in handle.keys() if key.endswith(("attn_mask", "relative_position_index"))]  # noqa: SIM118
    load_into(module, read_state_dict(path), path)
    assert_same(copy_of(module), copy_of(source))


def test_casts_floating_weights_only(tmp_path):
    state, path = copy_of(Denoiser()), tmp_path / "w.safetensors"
    save_safetensors(state, path, {}, dtype=torch.float16)
    saved = load_file(path)
    assert saved["norm.weight"].dtype == torch.float16
    assert torch.equal(saved["norm.weight"], state["norm.weight"].half())
    assert saved["norm.num_batches_tracked"].dtype == torch.int64


def test_saves_strided_and_shared_tensors(tmp_path):
    shared = torch.randn(4, 6, requires_grad=True)
    state = {"a": shared, "b": shared, "t": shared.t(), "row": shared[1], "wide": torch.ones(1).expand(5)}
    save_safetensors(state, tmp_path / "w.safetensors", {})
    assert_same(load_file(tmp_path / "w.safetensors"), {key: value.detach() for key, value in state.items()})


@pytest.mark.parametrize(
    "state, options, error, words",
    [
        ({"a": torch.tensor([float("nan")])}, {}, ValueError, "a is NaN"),
        ({"a": torch.tensor([1e6])}, {"dtype": torch.float16}, ValueError, "infinite in float16"),
        ({"a": torch.ones(1)}, {"dtype": torch.int8}, TypeError, "floating-point"),
        ({"a": torch.ones(1)}, {"metadata": {"epoch": 3}}, TypeError, "metadata"),
    ],
    ids=["nan", "overflow", "integer-dtype", "metadata"],
)
def test_unsuitable_content_is_not_saved(tmp_path, state, options, error, words):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(error, match=words):
        save_safetensors(state, path, **{"metadata": {}, **options})
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left") as error:
        save_safetensors(WEIGHTS, path, {})
    assert str(path) in one_line(error)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


def test_saving_into_a_missing_folder(tmp_path):
    with pytest.raises(OSError, match="does not exist; create it first") as error:
        save_safetensors(WEIGHTS, tmp_path / "none" / "w.safetensors", {})
    one_line(error)
