"""Read, check, load and write weights: `.pth`, `.pt` and `.ckpt` of torch.save, and `.safetensors`.

A file is recognized by its first bytes and not by its name, so that the message about an error page saved as `.pth`
says so. Nothing in a file is ever executed (`weights_only=True`). A module is either loaded completely or unchanged.
"""

import codecs
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from resshift_fast.core.files import write_atomically
from resshift_fast.weights import archives, safetensors_file

# Keys under which training programs store the weights in a checkpoint; the first that holds tensors is taken.
WRAPPERS = ("params_ema", "ema", "params", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # added by DistributedDataParallel and by torch.compile
# Buffers that a module computes from its configuration: a file's values are compared with them, never loaded.
DERIVED = ("attn_mask", "relative_position_index")

_MAX_NESTING = 8
_HEAD_BYTES = 1024
# First bytes of files in torch.save's older format, before zip, after a few bytes of the pickle protocol.
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_FOREIGN = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x1f\x8b", "a gzip archive to unpack first"),
    (b"%PDF", "a PDF document"),
)
_DENOISER_KEYS = ("input_blocks.", "middle_block.", "output_blocks.")
_AUTOENCODER_KEYS = ("encoder.", "decoder.", "quantize.")


class CheckpointError(ValueError):
    """A weights file that cannot be read, or that does not fit the model; the message is one line."""


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights of one file onto the CPU.

    The state dict may be bare or lie under `params_ema`, `ema`, `params`, `state_dict` or `model` (in this order where
    there are several), nested more than once. Leading `module.` and `_orig_mod.` are removed from the keys that have
    them. Tensors keep their dtype.

    Args:
        path: a file of torch.save (zip or older format) or of safetensors, under any name.

    Returns:
        Keys and detached CPU tensors.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is a folder, empty, unreadable, truncated, of another kind, holds anything but plain
            data, holds no state dict, or two of its keys become one without their prefixes.

    Example:
        >>> state = read_state_dict("resshift_realsrx4_s4_v3.pth")  # doctest: +SKIP
    """
    path = Path(path)
    kind = _recognize(path)
    tree = _read_safetensors(path) if kind == "safetensors" else _read_torch(path, packed=kind == "packed")
    found = _find_tensors(tree)
    if found is None:
        content = f"a {type(tree).__name__}"
        if isinstance(tree, Mapping):
            content += f" with the keys {_listed(map(_short, tree))}" if tree else " with nothing in it"
        raise CheckpointError(
            f"{path} holds no state dict but {content}; expected named tensors, bare or under {', '.join(WRAPPERS)}"
        )
    state: dict[str, Tensor] = {}
    for key, tensor in found.items():
        name = strip_prefixes(key)
        if name in state:
            raise CheckpointError(f"{path}: two keys are both {_short(name)} without {' and '.join(PREFIXES)}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{path}: {_short(key)} is sparse, quantized or without data; expected plain tensors")
        state[name] = tensor.detach()
    return state


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The strings in the header of a safetensors file; empty for other kinds of weights.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read.
    """
    path = Path(path)
    if _recognize(path) != "safetensors":
        return {}
    try:
        return safetensors_file.metadata(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({_reason(error)}); download it again") from error


def check_whole(path: str | os.PathLike[str]) -> bool:
    """Compare every file in an archive of torch.save with its checksum; other kinds of weights have none.

    Returns:
        Whether there were checksums.

    Raises:
        CheckpointError: as `read_state_dict`, and for a wrong checksum.
    """
    path = Path(path)
    try:
        has_sums = _recognize(path) in ("zip", "packed")
        if has_sums:
            archives.check_sums(path)
        return has_sums
    except archives.ArchiveError as error:
        raise CheckpointError(f"{path} is damaged ({error}); download it again") from error


def strip_prefixes(key: str) -> str:
    """Remove every leading `module.` and `_orig_mod.` from one key, in any order and number."""
    rest = key
    while rest.startswith(PREFIXES):
        rest = rest.split(".", 1)[1]
    return rest or key


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Copy a state dict into a module, completely or not at all.

    Every weight must be present, with the module's shape and kind (floating, integer, …); dtypes may differ, and values
    are cast to the module's. The derived buffers (`attn_mask`, `relative_position_index`) of the module are kept: the
    file may lack them, and its masks may be those of another resolution, but values that contradict the module's are
    an error, because such weights were trained with another attention. A prefix that all keys of the module have in
    the file, such as `model.`, is removed; keys without it then belong to other networks.

    Args:
        module: any module with its weights in memory (not on the meta device).
        state: as read_state_dict returns it.
        source: name of the weights in messages, usually the file's path.

    Raises:
        CheckpointError: keys, shapes, kinds or derived values differ (the first three of each are named), or a weight
            is NaN or infinite in the module's dtype. The module is then unchanged.
        ValueError: the module is on the meta device.
    """
    full = module.state_dict()
    own = {key: value for key, value in full.items() if isinstance(value, Tensor)}
    if any(target.is_meta for target in own.values()):
        raise ValueError(f"{type(module).__name__} is on the meta device; call its to_empty before loading {source}")
    state = _without_common_prefix(own, state)
    problems = _mismatches(own, state)
    if problems:
        hint = _hint(own, state)
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: {', '.join(problems)}{hint and '; '}{hint}; "
            "pass the file that belongs to this model"
        )
    weights = {key: state[key] for key in own if not key.endswith(DERIVED)}
    for key, tensor in weights.items():
        if not _is_finite(tensor.to(own[key].dtype)):
            raise CheckpointError(
                f"{source}: {_short(key)} is NaN or infinite in {_name(own[key].dtype)}; "
                "the file is damaged or its training diverged, use another"
            )
    full.update(weights)
    module.load_state_dict(full)


def save_safetensors(
    module_or_state: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write weights as one safetensors file, atomically: readers find either the old file or the complete new one.

    The derived buffers are left out: load_into does not need them.

    Args:
        module_or_state: a module, or keys and tensors on any device.
        path: the file to write; its folder must exist.
        metadata: strings kept in the file's header.
        dtype: cast floating-point tensors to it (torch.float16 halves the file); None keeps their dtypes.

    Raises:
        TypeError: metadata are not strings, or dtype is not a floating-point dtype.
        ValueError: a weight is NaN or infinite, or becomes so in dtype.
        OSError: the file could not be written; an existing file is untouched.
    """
    path = Path(path)
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise TypeError(f"metadata must be a dict of str to str, got {dict(metadata)!r}; convert its values with str()")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype or None, got {dtype}")
    state = module_or_state.state_dict() if isinstance(module_or_state, nn.Module) else module_or_state
    tensors = {key: _to_save(key, value, dtype) for key, value in state.items() if not key.endswith(DERIVED)}
    write_atomically(path, serialize(tensors, metadata=dict(metadata)))


def _recognize(path: Path) -> str:
    """Return "zip", "packed", "legacy" or "safetensors" from the first bytes, or raise what the file is instead."""
    if not path.exists():
        raise FileNotFoundError(f"weights file {path} does not exist; check the path")
    if not path.is_file():
        raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}; pass a weights file")
    try:
        with open(path, "rb") as handle:
            head = handle.read(_HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({_reason(error)}); check its permissions") from error
    if not head:
        raise CheckpointError(f"{path} is empty; download it again")
    if head.startswith(b"PK"):
        return _recognize_zip(path)
    if _LEGACY_MAGIC in head[:32]:
        return "legacy"
    if head[8:9] == b"{":
        return "safetensors"
    raise CheckpointError(f"{path} is {_foreign(head, path)}")


def _recognize_zip(path: Path) -> str:
    """Return "zip" for an archive of torch.save, or "packed" if another program has packed it again."""
    try:
        found = archives.entries(path)
    except archives.ArchiveError as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); download it again") from error
    names = [entry.filename for entry in found if not entry.is_dir()]
    ends = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in ends:
        raise CheckpointError(f"{path} is a TorchScript program; expected a state dict of torch.save or safetensors")
    if "data.pkl" not in ends:
        content = _listed(map(_short, names)) or "nothing"
        raise CheckpointError(f"{path} is a zip archive without tensors (it holds {content}); unpack it first")
    return "packed" if archives.is_repacked(found) else "zip"


def _foreign(head: bytes, path: Path) -> str:
    """Say what a file that is not a checkpoint looks like, and what to do."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "a web page (HTML), not weights: the server answered with an error or a log-in page; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the weights themselves; run `git lfs pull` or download the file"
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            return f"{what}; expected weights saved by torch.save or safetensors"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "a bare Python pickle, which could run code when opened, so it was not; save the weights with torch.save"
    if _is_text(head):
        return "a text file; expected weights saved by torch.save or safetensors"
    if path.suffix == ".safetensors":
        return "not a safetensors file, or a damaged one; download it again"
    return "neither a file of torch.save nor of safetensors, or a damaged one; download it again"


def _is_text(head: bytes) -> bool:
    try:
        # An incremental decoder accepts that the last character may be incomplete.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors_file.read(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({_reason(error)}); download it again") from error


def _read_torch(path: Path, packed: bool) -> Any:
    """torch.load without code execution; a damaged pickle may raise nearly any exception.

    The file is not mapped into memory: if it were cut while it is read, the system would end the program.
    """
    try:
        # Given a path that ends in .safetensors, torch.load assumes that format whatever the content.
        with archives.as_saved(path) if packed else open(path, "rb") as handle:
            return torch.load(handle, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path} holds Python objects besides tensors ({refused[1]}), which could run code and so were not "
                "opened; where you trust it, save its state dict alone with torch.save and pass that file"
            ) from error
        # torch's message begins with advice on unsafe loading, which is left out; the reason follows it.
        inner = re.search(r"WeightsUnpickler error:\s*(\S[^\n]*)", str(error))
        if inner or isinstance(error, UnpicklingError):
            reason = inner[1] if inner else "its pickle could not be read"
            raise CheckpointError(
                f"{path} is damaged or was saved with another pickle protocol than torch.save's own ({reason}); "
                "download it or save it again"
            ) from error
        raise CheckpointError(f"{path} is truncated or damaged ({_reason(error)}); download it again") from error


def _find_tensors(tree: Any, depth: int = 0) -> dict[str, Tensor] | None:
    """The state dict inside a checkpoint, or None. The depth is bounded because a pickle may contain itself."""
    if not isinstance(tree, Mapping) or depth > _MAX_NESTING:
        return None
    for wrapper in WRAPPERS:
        inner = _find_tensors(tree.get(wrapper), depth + 1)
        if inner is not None:
            return inner
    return {key: value for key, value in tree.items() if isinstance(key, str) and isinstance(value, Tensor)} or None


def _without_common_prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The part of a state dict whose keys, after a prefix such as `model.`, are all of a module's.

    Programs that train several networks, or a network inside another, put such a prefix before each key. Averaged
    weights are preferred, where there are several parts that fit.
    """
    needed = [key for key in own if not key.endswith(DERIVED)]
    if not needed or all(key in state for key in needed):
        return state
    prefixes = {key[: -len(needed[0])] for key in state if key.endswith(f".{needed[0]}")}
    fitting = [prefix for prefix in prefixes if all(prefix + key in state for key in needed)]
    if not fitting:
        return state
    chosen = min(fitting, key=lambda prefix: ("ema" not in prefix.lower(), len(prefix), prefix))
    return {key.removeprefix(chosen): tensor for key, tensor in state.items() if key.startswith(chosen)}


def _mismatches(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """One phrase for each kind of difference between a module's state dict and a file's."""
    missing = [_short(key) for key in own if key not in state and not key.endswith(DERIVED)]
    unexpected = [_short(key) for key in state if key not in own]
    shared = [key for key in own if key in state]
    shapes = [
        f"{_short(key)} {list(state[key].shape)} in the file, {list(own[key].shape)} expected"
        for key in shared
        if not _same_shape(key, state[key], own[key])
    ]
    kinds = [
        f"{_short(key)} {_name(state[key].dtype)} in the file, {_name(own[key].dtype)} expected"
        for key in shared
        if _kind(state[key]) != _kind(own[key])
    ]
    contradicting = [
        _short(key)
        for key in shared
        if key.endswith(DERIVED)
        and state[key].shape == own[key].shape
        and not torch.equal(state[key].to(own[key]), own[key])
    ]
    differences = {
        "missing": missing,
        "unexpected": unexpected,
        "wrongly shaped": shapes,
        "of the wrong kind": kinds,
        "trained with another attention mask or window order": contradicting,
    }
    return [f"{len(found)} {what} ({_listed(found)})" for what, found in differences.items() if found]


def _same_shape(key: str, tensor: Tensor, target: Tensor) -> bool:
    """Equal shapes; masks [windows, tokens, tokens] may differ in the number of windows, given by the resolution."""
    if key.endswith("attn_mask") and tensor.dim() == target.dim() == 3:
        return tensor.shape[1:] == target.shape[1:]
    return tensor.shape == target.shape


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "floating"
    return "bool" if tensor.dtype == torch.bool else "integer"


def _hint(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Guess from well-known keys which wrong file was passed; empty if there is no guess."""
    found, expected = _network(state), _network(own)
    if found and expected and found != expected:
        return f"the file holds {found} where {expected} belongs, so the two may have been exchanged"
    if not any(key in state for key in own):
        return "no key is shared, so it is another network's file"
    for key, axes, what in (
        ("input_blocks.0.0.weight", slice(1, 2), "first convolution's input channels"),
        ("quantize.embedding.weight", slice(None), "codebook"),
    ):
        if key in own and key in state and own[key].shape[axes] != state[key].shape[axes]:
            theirs, ours = ("×".join(map(str, tensor[key].shape[axes])) for tensor in (state, own))
            return f"its {what}: {theirs} instead of {ours}, so it looks like {found or 'a network'} for another task"
    return ""


def _network(keys: Iterable[str]) -> str:
    keys = list(keys)
    if any(key.startswith(_DENOISER_KEYS) for key in keys):
        return "a denoiser"
    return "an autoencoder" if any(key.startswith(_AUTOENCODER_KEYS) for key in keys) else ""


def _is_finite(tensor: Tensor) -> bool:
    # aminmax propagates NaN and is two orders of magnitude faster than isfinite().all() on a whole model.
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor))


def _to_save(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A contiguous copy on the CPU: safetensors refuses tensors that share memory, such as tied weights and views."""
    target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    copy = tensor.detach().to("cpu", target, copy=True).contiguous()
    if not _is_finite(copy):
        raise ValueError(f"{_short(key)} is NaN or infinite in {_name(target)}; such weights are not saved")
    return copy


def _listed(items: Iterable[str]) -> str:
    """The first three, for a message."""
    items = list(items)
    return ", ".join(items[:3] + ["…"] * (len(items) > 3))


def _short(key: Any) -> str:
    """A key in a form that fits a one-line message, whatever characters a file has in it."""
    text = str(key)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 100 else f"{text[:97]}…"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _reason(error: BaseException) -> str:
    """The first line of an exception's message, or its class if it has none."""
    text = getattr(error, "strerror", None) or str(error)
    lines = text.strip().splitlines()
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__
