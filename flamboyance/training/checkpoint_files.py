"""The files of one checkpoint: JSON and safetensors, with a checksum of each. Nothing in them can run code.

    step-00000500/
        rank-0.safetensors   the tensors that rank 0 wrote: whole ones, or its shards
        rank-0.json          the place of each of them in the whole tensor, and the rank's state
        …                    two files per rank
        checkpoint.json      step and model, and size and CRC-32 of every file; written last

Tensors are found by name and place, so that another number of ranks or another kind of parallelism can read them.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from flamboyance.files import naming, replacing

MANIFEST = "checkpoint.json"
FORMAT = 1
BLOCK = 1 << 24  # bytes read at a time

Place = tuple[tuple[int, ...], tuple[int, ...]]  # offset and shape of a piece in the whole tensor


class Damaged(ValueError):
    """A checkpoint differs from what was written."""


@dataclass(frozen=True)
class Piece:
    """One rank's piece of a tensor.

    Attributes:
        whole: shape of the whole tensor.
        place: the piece's place in it.
        values: the values of the piece, not a copy.
    """

    whole: tuple[int, ...]
    place: Place
    values: torch.Tensor


def held(tensor: torch.Tensor) -> Piece:
    """This rank's piece of a tensor, which may be sharded."""
    whole = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return Piece(whole, ((0,) * len(whole), whole), tensor)
    (chunk,) = tensor.__create_chunk_list__()
    with torch.no_grad():
        return Piece(whole, (tuple(chunk.offsets), tuple(chunk.sizes)), tensor.to_local())


def share(tensors: Mapping[str, torch.Tensor], rank: int, ranks: int) -> dict[str, Piece]:
    """The pieces that this rank writes, copied to main memory: its shards, and its share of the tensors that every rank
    has. Together the ranks write everything once."""
    chosen: dict[str, torch.Tensor] = {}
    common = sorted(name for name, tensor in tensors.items() if not isinstance(tensor, DTensor))
    for name in common[rank::ranks]:
        chosen[name] = tensors[name]
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor) and _first_copy(tensor):
            chosen[name] = tensor
    found = {}
    for name, tensor in chosen.items():
        piece = held(tensor)
        if piece.values.numel():
            values = piece.values.detach().to("cpu", copy=True).contiguous()
            found[name] = Piece(piece.whole, piece.place, values)
    return found


def _first_copy(tensor: DTensor) -> bool:
    """Whether this rank has the first copy of its shard."""
    here = tensor.device_mesh.get_coordinate() or ()
    return all(not placement.is_replicate() or at == 0 for placement, at in zip(tensor.placements, here, strict=True))


# ---- writing --------------------------------------------------------------------------------------------------------


def write_share(folder: Path, rank: int, pieces: Mapping[str, Piece], state: Mapping[str, Any]) -> dict[str, Any]:
    """Writes one rank's two files, and returns their entries in the manifest.

    Raises:
        OSError: names the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors, about = folder / f"rank-{rank}.safetensors", folder / f"rank-{rank}.json"
    with replacing(tensors) as part:  # turns safetensors' error about a full disk into an OSError
        save_file({name: piece.values for name, piece in pieces.items()}, part)
    _sync(tensors)
    places = {name: {"whole": p.whole, "offset": p.place[0], "shape": p.place[1]} for name, p in pieces.items()}
    _write_json(about, {**state, "tensors": places})
    return {file.name: {"bytes": file.stat().st_size, "crc32": _checksum(file)} for file in (tensors, about)}


def write_manifest(folder: Path, about: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Writes the last file. A directory without it is not a checkpoint."""
    content = {"format": FORMAT, **about, "files": files}
    _write_json(folder / MANIFEST, {**content, "crc32": _checksum_of(content)})
    _sync(folder)


def _write_json(path: Path, content: Any) -> None:
    with naming(path), open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def _checksum_of(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


# ---- reading --------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint.

    Raises:
        Damaged: the manifest is missing or has changed, or the files do not match it.
        OSError: it cannot be read.
    """
    if not folder.is_dir():
        raise Damaged("it is not a directory")
    if not (folder / MANIFEST).exists() and (folder / ".metadata").exists():
        raise Damaged("it was written by an earlier version, in a format that can run code and is no longer read")
    content = _read_json(folder / MANIFEST)
    kept = content.pop("crc32", None)
    if content.get("format", FORMAT) != FORMAT:
        raise Damaged(f"it has format {content['format']}, this version reads {FORMAT}: use a newer Flamboyance")
    if kept != _checksum_of(content):
        raise Damaged(f"{MANIFEST} has changed since it was written")
    ranks, files = content.get("ranks"), content.get("files")
    if not isinstance(ranks, int) or not isinstance(files, dict) or len(files) != 2 * ranks:
        raise Damaged(f"{MANIFEST} does not list two files for each of {ranks} ranks")
    expected = {f"rank-{rank}.{suffix}" for rank in range(ranks) for suffix in ("json", "safetensors")}
    if set(files) != expected:
        raise Damaged(f"{MANIFEST} does not list {min(expected - set(files))}")
    for name, entry in files.items():
        _regular(folder / name)
        if (size := (folder / name).stat().st_size) != entry["bytes"]:
            raise Damaged(f"{name} has {size:,} bytes, {entry['bytes']:,} were written")
    return content


def verify(folder: Path, files: Mapping[str, Any], names: Sequence[str]) -> None:
    """Compares the checksums of some of the files.

    Raises:
        Damaged: one has changed.
        OSError: one cannot be read.
    """
    for name in names:
        _regular(folder / name)
        if _checksum(folder / name) != files[name]["crc32"]:
            raise Damaged(f"{name} has changed since it was written: its checksum is another")


def read_states(folder: Path, ranks: int) -> list[dict[str, Any]]:
    """Reads the state of every rank, with the places of its "tensors".

    Raises:
        Damaged: it is not JSON.
    """
    return [_read_json(folder / f"rank-{rank}.json") for rank in range(ranks)]


def shapes(states: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Whole shapes of the tensors in a checkpoint, by name."""
    return {name: tuple(place["whole"]) for state in states for name, place in state["tensors"].items()}


def read_tensors(folder: Path, states: Sequence[Mapping[str, Any]], tensors: Mapping[str, torch.Tensor]) -> None:
    """Reads this rank's piece of each tensor into it, whichever ranks wrote it.

    Args:
        states: from `read_states`.

    Raises:
        Damaged: a tensor is missing or incomplete.
    """
    wanted = {name: held(tensor) for name, tensor in tensors.items()}
    done = dict.fromkeys(wanted, 0)
    for rank, state in enumerate(states):
        file = folder / f"rank-{rank}.safetensors"
        overlaps = dict(_overlaps(wanted, state["tensors"]))
        if not overlaps:
            continue
        try:
            with safe_open(file, "pt", device="cpu") as stored:
                for name, (source, target) in overlaps.items():
                    values = stored.get_slice(name)[source] if source else stored.get_tensor(name)
                    wanted[name].values[target].copy_(values)
                    done[name] += values.numel()
        except SafetensorError as error:
            raise Damaged(f"{file.name}: {error}") from error
    for name, piece in wanted.items():
        if done[name] != piece.values.numel():
            raise Damaged(f"{name} is missing or incomplete")


Region = tuple[slice, ...]


def _overlaps(
    wanted: Mapping[str, Piece], stored: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, tuple[Region, Region]]]:
    """(name, (region in the stored piece, region in the wanted piece)) of all overlaps."""
    for name, one in stored.items():
        if name not in wanted:
            continue
        source, target = [], []
        for begin, length, start, size in zip(one["offset"], one["shape"], *wanted[name].place, strict=True):
            first, last = max(begin, start), min(begin + length, start + size)
            source.append(slice(first - begin, last - begin))
            target.append(slice(first - start, last - start))
        if all(part.start < part.stop for part in source):
            yield name, (tuple(source), tuple(target))


def _read_json(path: Path) -> dict[str, Any]:
    _regular(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Damaged(f"{path.name} holds no JSON object")
    return content


def _regular(path: Path) -> None:
    if not path.exists():
        raise Damaged(f"{path.name} is missing")
    if not path.is_file():
        raise Damaged(f"{path.name} is not a regular file")
