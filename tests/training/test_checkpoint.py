"""A run's checkpoints: whatever happens to the newest, the one before is used, and the message says why."""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flamboyance.processes import World
from flamboyance.training.checkpoint import Checkpoints

ALONE = World()
IDENTITY = {"language": "some", "added_tokens": ["<image>"]}


def parts() -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    trained = {"a": nn.Parameter(torch.zeros(4, 3)), "b": nn.Parameter(torch.zeros(5))}
    return trained, torch.optim.AdamW(trained.values(), fused=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 3 and 7; parameters are as the number of the step."""
    checkpoints, (trained, optimizer) = Checkpoints(tmp_path / "checkpoints", ALONE, 2, IDENTITY), parts()
    for step in (3, 7):
        for p in trained.values():
            p.data.fill_(step)
        checkpoints.save(step, trained, optimizer, {"data": {"place": step}})
        checkpoints.wait()
    return tmp_path / "checkpoints"


def loaded(folder: Path, identity: dict = IDENTITY) -> int | None:
    """The step that is loaded: of the state, and of every value."""
    trained, optimizer = parts()
    states = Checkpoints(folder, ALONE, 2, identity).load(trained, optimizer)
    if states is None:
        return None
    (state,) = states
    assert state["data"] == {"place": state["step"]}
    assert {float(value) for p in trained.values() for value in p.detach().flatten()} == {state["step"]}
    return state["step"]


# ---- damage ---------------------------------------------------------------------------------------------------------

FILES = ("checkpoint.json", "rank-0.json", "rank-0.safetensors")


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def cut_by_a_byte(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"}")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def missing(file: Path) -> None:
    file.unlink()


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def dangling_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def other_json(file: Path) -> None:
    file.write_text('["other"]', encoding="utf-8")


def nested_json(file: Path) -> None:
    file.write_text("[" * 100_000, encoding="utf-8")


DAMAGE = [cut, cut_by_a_byte, longer, emptied, garbage, zeros, flipped, missing, directory, dangling_link, other_json]
DAMAGE += [nested_json]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_falls_back_to_the_checkpoint_before(
    folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / "step-00000007" / name)
    with pytest.warns(UserWarning, match=rf"step-00000007.*{name}") as warned:
        assert loaded(folder) == 3
    said = [str(one.message) for one in warned if one.category is UserWarning]
    assert len(said) == 1 and "\n" not in said[0]
    assert sorted(os.listdir(folder)) == ["step-00000003", "step-00000007.damaged"]
    assert loaded(folder) == 3  # from now on without a warning


def other_shapes(path: Path) -> None:
    tensors = load_file(path / "rank-0.safetensors")
    save_file({**tensors, "model.a": torch.zeros(2, 2)}, path / "rank-0.safetensors")


def missing_keys(path: Path) -> None:
    tensors = load_file(path / "rank-0.safetensors")
    del tensors["model.a"]
    save_file(tensors, path / "rank-0.safetensors")


def of_another_step(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step-00000003"), path)


def nothing_in_it(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("hello", encoding="utf-8")


def of_a_newer_version(path: Path) -> None:
    content = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
    (path / "checkpoint.json").write_text(json.dumps({**content, "format": 2}), encoding="utf-8")


def of_an_earlier_version(path: Path) -> None:
    nothing_in_it(path)
    (path / ".metadata").write_bytes(b"\x80\x02.")
    (path / "rank-0.json").write_text("{}", encoding="utf-8")


def with_a_well_signed_lie(path: Path) -> None:
    """Checksums fit, as somebody may write them, but the rest does not."""
    (path / "rank-0.json").write_text(json.dumps({"tensors": {"model.a": [1]}}), encoding="utf-8")
    content = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
    file = (path / "rank-0.json").read_bytes()
    content["files"]["rank-0.json"] = {"bytes": len(file), "crc32": zlib.crc32(file)}
    del content["crc32"]
    signed = {**content, "crc32": zlib.crc32(json.dumps(content, sort_keys=True).encode())}
    (path / "checkpoint.json").write_text(json.dumps(signed), encoding="utf-8")


WHOLE = [other_shapes, missing_keys, of_another_step, nothing_in_it, a_file, of_a_newer_version, of_an_earlier_version]
WHOLE += [with_a_well_signed_lie]


@pytest.mark.parametrize("damage", WHOLE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / "step-00000007")
    with pytest.warns(UserWarning, match="step-00000007"):
        assert loaded(folder) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_a_damaged_one(folder: Path) -> None:
    (folder / "step-00000007" / "rank-0.json").chmod(0)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert loaded(folder) == 3


def test_without_a_good_checkpoint_all_are_named_in_one_line_and_left_as_they_are(folder: Path) -> None:
    cut(folder / "step-00000003" / "rank-0.json")
    missing(folder / "step-00000007" / "checkpoint.json")
    with pytest.raises(ValueError, match=r"step-00000007.*checkpoint\.json.*step-00000003.*rank-0\.json") as error:
        loaded(folder)
    assert "\n" not in str(error.value) and "another output=" in str(error.value)
    assert sorted(os.listdir(folder)) == ["step-00000003", "step-00000007"]


def test_another_model_is_no_damage(folder: Path) -> None:
    with pytest.raises(ValueError, match="another model"):
        loaded(folder, {**IDENTITY, "language": "other"})
    assert loaded(folder) == 7
    assert loaded(folder, {**IDENTITY, "said": "by later versions alone"}) == 7


def test_a_damaged_checkpoint_is_written_anew(folder: Path) -> None:
    cut(folder / "step-00000007" / "rank-0.json")
    (folder / "step-00000007.damaged").mkdir()  # of an earlier time
    trained, optimizer = parts()
    checkpoints = Checkpoints(folder, ALONE, 1, IDENTITY)
    with pytest.warns(UserWarning, match="is damaged"):
        checkpoints.load(trained, optimizer)
    for p in trained.values():
        p.data.fill_(7)
    checkpoints.save(7, trained, optimizer, {"data": {"place": 7}})
    assert checkpoints.wait() == folder / "step-00000007"
    assert loaded(folder) == 7
    checkpoints.save(7, trained, optimizer, {"data": {"place": 7}})  # over a good one too
    checkpoints.wait()
    assert loaded(folder) == 7


def test_left_overs_of_a_kill_are_removed(folder: Path) -> None:
    (folder / ".step-00000009.partial").mkdir()
    (folder / ".step-00000009.partial" / "rank-0.json").write_text("{", encoding="utf-8")
    (folder / ".step-00000010.partial").write_text("", encoding="utf-8")
    assert loaded(folder) == 7
    assert sorted(os.listdir(folder)) == ["step-00000003", "step-00000007"]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert loaded(tmp_path / "checkpoints") is None
