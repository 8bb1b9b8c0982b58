"""Files: safetensors with packed tensors in them, and torch.load with weights_only=True.

Format 1 of a safetensors file with packed tensors:

- the payload of tensor ``name`` is stored as ``name.awq_v1``, ``name.awq_v1_reorder`` or ``name.awq_v2``: an ordinary
  int32 or int16 tensor to any reader;
- the file's metadata has the key ``awqpack``: JSON of
  ``{"version": 1, "tensors": {name: {"key", "packing", "reorder", "size", "stride"}}}``. Names that share one payload
  (tied weights) share its key. Plain tensors that lie in the same memory are stored under the first of their names; the
  others are in ``"ties": {name: stored name}``, which is left out where there are none.

Format 2 is the same with ``name.awq_marlin``; a file without such a payload is of format 1, which older versions read.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from typing import Any

import torch

from .formats import FORMATS, format_of
from .packing import AWQPacking
from .tensor import AWQPackedTensor, rebuild_packed_tensor

FORMAT_VERSION = max(form.since for form in FORMATS)
_METADATA_KEY = "awqpack"


def register() -> None:
    """Lets torch.load(weights_only=True) rebuild packed tensors; awqpack does so when it is imported."""
    torch.serialization.add_safe_globals([rebuild_packed_tensor, AWQPackedTensor])


def _suffix(tensor: AWQPackedTensor) -> str:
    return format_of(tensor.packing.value, tensor.reorder).suffix


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for plain tensors that lie in the same memory in the same way."""
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether equal addresses mean the same elements. safetensors names the others, which it cannot store."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and tensor.numel() > 0
        and not torch.utils._python_dispatch.is_traceable_wrapper_subclass(tensor)
    )


def _require_safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("awqpack's files need safetensors: pip install safetensors") from error
    return safetensors


def _store(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None, who: str
) -> tuple[dict[str, torch.Tensor], dict[str, str] | None]:
    """The plain tensors and the metadata that a file has of these tensors."""
    if not isinstance(tensors, Mapping):
        raise TypeError(f"{who} expects tensors by name, in a mapping; got {type(tensors)}")
    if metadata is not None and _METADATA_KEY in metadata:
        raise ValueError(f"metadata expects keys other than {_METADATA_KEY!r}, which {who} writes itself")
    stored: dict[str, torch.Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    keys: dict[tuple[Any, ...], str] = {}
    ties: dict[str, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, AWQPackedTensor):
            key = keys.setdefault(_identity(tensor), name) if _has_memory(tensor) else name
            value = tensor
            if key != name:
                ties[name] = key
                continue
        else:
            identity = (_suffix(tensor), *_identity(tensor.payload))
            key = keys.setdefault(identity, f"{name}.{_suffix(tensor)}")
            value = tensor.payload.contiguous()
            entries[name] = {
                "key": key,
                "packing": tensor.packing.value,
                "reorder": tensor.reorder,
                "size": list(tensor.shape),
                "stride": list(tensor.stride()),
            }
            if key in stored and key != f"{name}.{_suffix(tensor)}":
                continue
        if key in stored:
            raise ValueError(f"two tensors would be stored as {key!r}; rename one of them")
        stored[key] = value
    header = dict(metadata or {})
    if entries or ties:
        version = max((format_of(entry["packing"], entry["reorder"]).since for entry in entries.values()), default=1)
        header[_METADATA_KEY] = json.dumps({"version": version, "tensors": entries} | ({"ties": ties} if ties else {}))
    return stored, header or None


def save_file(
    tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors, packed and plain, to a safetensors file that any safetensors reader can open.

    Args:
        tensors: by name. Packed tensors keep their payload, packing, reorder, size and stride. Ties are stored once.
        path: the file to write.
        metadata: more strings for the file's header; the key ``awqpack`` is taken.

    Raises:
        ValueError: two tensors would get the same name, or metadata uses the key ``awqpack``.
    """
    safetensors = _require_safetensors()
    stored, header = _store(tensors, metadata, "save_file")
    safetensors.torch.save_file(stored, path, metadata=header)


def save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of the file that :func:`save_file` would write."""
    safetensors = _require_safetensors()
    stored, header = _store(tensors, metadata, "save")
    data: bytes = safetensors.torch.save(stored, metadata=header)
    return data


def _read_header(text: str | None, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The entries of packed tensors, and the names of tied plain ones with the names that they are stored under."""
    if text is None:
        return {}, {}
    try:
        header = json.loads(text)
        version = header["version"]
        entries = header["tensors"]
        ties = header.get("ties", {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: the awqpack metadata is damaged ({error!r})") from error
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path} is in awqpack format {version!r}; this awqpack reads up to {FORMAT_VERSION}: install a newer one"
        )
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: the awqpack metadata is damaged (tensors is no object)")
    if not isinstance(ties, dict) or not all(isinstance(key, str) for key in ties.values()):
        raise ValueError(f"{path}: the awqpack metadata is damaged (ties is no object of names)")
    return entries, ties


def packed_entries(metadata: Mapping[str, str] | None, path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the metadata of a file say of its packed tensors, by name; empty for another file.

    Raises:
        ValueError: the file was written by a newer format, or the metadata is damaged.
    """
    return _read_header((metadata or {}).get(_METADATA_KEY), path)[0]


def _on_meta(file: Any, key: str) -> torch.Tensor:
    """A tensor of a file without its values, of which none is read."""
    part = file.get_slice(key)
    shape = part.get_shape()
    dtype = (part[:0] if shape else file.get_tensor(key)).dtype
    return torch.empty(shape, dtype=dtype, device="meta")


def load_file(
    path: str | os.PathLike[str], device: torch.device | str | int = "cpu", *, backend: str | None = None
) -> dict[str, torch.Tensor]:
    """Reads what :func:`save_file` wrote, or any other safetensors file.

    Args:
        path: the file to read.
        device: where the tensors, and the payloads of packed ones, go; on ``meta`` they have no values.
        backend: how safetensors reads the file, where its version lets callers choose (``"mmap"``, ``"pread"``).

    Returns:
        The tensors by name: packed ones first, as ``AWQPackedTensor``, on the CPU too, then the others.

    Raises:
        ValueError: the file was written by a newer format, or its awqpack metadata does not fit its tensors.
        safetensors.SafetensorError: the file is no safetensors file, or is cut short.
    """
    safetensors = _require_safetensors()
    is_meta = torch.device(device).type == "meta"
    how = {} if backend is None else {"backend": backend}
    with safetensors.safe_open(path, framework="pt", device="cpu" if is_meta else str(device), **how) as file:
        metadata = file.metadata()
        read = functools.partial(_on_meta, file) if is_meta else file.get_tensor
        stored = {key: read(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    return _restore(stored, metadata, path)


def load(data: bytes) -> dict[str, torch.Tensor]:
    """As :func:`load_file`, of the bytes that :func:`save` gave or of any other safetensors file's."""
    safetensors = _require_safetensors()
    stored = safetensors.torch.load(data)
    length = int.from_bytes(data[:8], "little")
    return _restore(stored, json.loads(data[8 : 8 + length]).get("__metadata__"), "these bytes")


def _restore(
    stored: dict[str, torch.Tensor], metadata: Mapping[str, str] | None, path: str | os.PathLike[str]
) -> dict[str, torch.Tensor]:
    """The tensors that a file holds as these."""
    entries, ties = _read_header((metadata or {}).get(_METADATA_KEY), path)
    packed_keys = set()
    result: dict[str, torch.Tensor] = {}
    for name, entry in entries.items():
        try:
            payload = stored[entry["key"]]
            packing, reorder = AWQPacking(entry["packing"]), entry["reorder"]
            result[name] = AWQPackedTensor(payload, packing, reorder, entry["size"], entry["stride"])
            packed_keys.add(entry["key"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: the awqpack metadata of {name!r} does not fit the file: {error}") from error
    for key, tensor in stored.items():
        if key in packed_keys:
            continue
        if key in result:
            raise ValueError(
                f"{path}: the awqpack metadata names a packed tensor {key!r}, which the file stores as a plain one"
            )
        result[key] = tensor
    for name, key in ties.items():
        if key not in stored or key in packed_keys or name in result:
            raise ValueError(f"{path}: the awqpack metadata ties {name!r} to {key!r}, which does not fit the file")
        result[name] = stored[key]
    return result
