"""One checkpoint's files: written in shares, read whole or in other shares, and never believed unchecked."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from flamboyance.training import checkpoint_files as files
from flamboyance.training.checkpoint_files import Damaged, Piece


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {"a": torch.randn(5, 3), "b": torch.randn(7), "half": torch.randn(4).bfloat16(), "step": torch.tensor(12.0)}
    return {**made, "none": torch.zeros(0, 3)}


def write(folder: Path, ranks: int = 2) -> None:
    entries = {}
    for rank in range(ranks):
        entries |= files.write_share(folder, rank, files.share(tensors(), rank, ranks), {"place": rank})
    files.write_manifest(folder, {"step": 4, "ranks": ranks}, entries)


def read(folder: Path, into: dict[str, torch.Tensor]) -> list[dict]:
    about = files.read_manifest(folder)
    files.verify(folder, about["files"], list(about["files"]))
    states = files.read_states(folder, about["ranks"])
    files.read_tensors(folder, states, into)
    return states


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_what_was_written_is_read(tmp_path: Path, ranks: int) -> None:
    write(tmp_path, ranks)
    into = {name: torch.full_like(tensor, 9) for name, tensor in tensors().items()}
    states = read(tmp_path, into)
    assert [state["place"] for state in states] == list(range(ranks))
    for name, tensor in tensors().items():
        assert torch.equal(into[name], tensor), name


def test_shards_are_read_by_any_other_division(tmp_path: Path) -> None:
    whole = torch.arange(35.0).reshape(7, 5)
    entries = {}
    for rank, (first, last) in enumerate([(0, 3), (3, 5), (5, 7)]):
        piece = Piece((7, 5), ((first, 0), (last - first, 5)), whole[first:last].contiguous())
        entries |= files.write_share(tmp_path, rank, {"w": piece}, {})
    files.write_manifest(tmp_path, {"step": 1, "ranks": 3}, entries)
    states = files.read_states(tmp_path, 3)
    into = torch.zeros(7, 5)
    files.read_tensors(tmp_path, states, {"w": into})
    assert torch.equal(into, whole) and files.shapes(states) == {"w": (7, 5)}
    del states[1]["tensors"]["w"]
    with pytest.raises(Damaged, match=r"\bw\b"):
        files.read_tensors(tmp_path, states, {"w": into})


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    into = {name: tensor.clone() for name, tensor in tensors().items()}
    for file in sorted(tmp_path.iterdir()):
        good = file.read_bytes()
        for place in range(0, len(good), max(1, len(good) // 23)):
            bad = bytearray(good)
            bad[place] ^= 1 << place % 8
            file.write_bytes(bad)
            with pytest.raises(Damaged):
                read(tmp_path, into)
        file.write_bytes(good)
    read(tmp_path, into)


def test_a_directory_that_names_other_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "step", 1)
    content = json.loads((tmp_path / "step" / "checkpoint.json").read_text(encoding="utf-8"))
    del content["crc32"]
    (tmp_path / "secret.json").write_text("{}", encoding="utf-8")
    entries = {"../secret.json": {"bytes": 2, "crc32": 0}, "rank-0.json": content["files"]["rank-0.json"]}
    files.write_manifest(tmp_path / "step", {"step": 4, "ranks": 1}, entries)
    with pytest.raises(Damaged, match=r"rank-0\.safetensors"):
        files.read_manifest(tmp_path / "step")
    files.write_manifest(tmp_path / "step", {"step": 4, "ranks": 10**12}, entries)
    with pytest.raises(Damaged, match="two files"):
        files.read_manifest(tmp_path / "step")


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self):
        return os.mkdir, (str(self.trap),)


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    trap, folder = tmp_path / "trap", tmp_path / "step"
    write(folder, 1)
    for name in (".metadata", "checkpoint.json", "rank-0.json", "rank-0.safetensors", "__0_0.distcp"):
        good = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes(pickle.dumps(Malicious(trap)))
        if good is None:
            read(folder, tensors())  # a file that is none of a checkpoint's is not looked at
            (folder / name).unlink()
        else:
            with pytest.raises(Damaged):
                read(folder, tensors())
            (folder / name).write_bytes(good)
    (folder / "checkpoint.json").unlink()
    (folder / ".metadata").write_bytes(pickle.dumps(Malicious(trap)))
    with pytest.raises(Damaged, match="earlier version"):
        read(folder, tensors())
    assert not trap.exists()


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "rank-0.json").unlink()
    os.mkfifo(tmp_path / "rank-0.json")
    with pytest.raises(Damaged, match="not a regular file"):
        read(tmp_path, tensors())
