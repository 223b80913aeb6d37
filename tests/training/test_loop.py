"""Whole runs in this process: what is learned, written, logged and refused."""

import errno
import io
import json
import os
import pickle
import re
import shutil
import signal
import time
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from flamboyance import FewShotTask, FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.checkpoints import openflamingo
from flamboyance.data.formats.user_data import UserData
from flamboyance.files import output_lock, replacing
from flamboyance.training import checkpoint_files, logging, loop
from flamboyance.training.config import check
from flamboyance.training.loop import train
from flamboyance.training.signals import Interrupted
from flamboyance.training.step import Stepper
from tests.data import torture
from tests.training.tiny_run import jpeg, losses, tiny_run, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


@pytest.fixture
def run(tmp_path, shards):
    def make(steps, **options):
        return tiny_run(tmp_path / "run", steps, shards, **{"workers": 0, **options})

    return make


def lines(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_fresh_memory_is_not_filled_and_nothing_reads_it(run, tmp_path, monkeypatch):
    """With a fill, a number that nobody wrote would be NaN."""
    weights, filled = [], []
    configure, take = loop.configure_torch, Stepper.__call__

    def step(self, *given, **named):
        filled.append(torch.utils.deterministic.fill_uninitialized_memory)
        return take(self, *given, **named)

    def configure_filling(*given):
        configure(*given)
        torch.utils.deterministic.fill_uninitialized_memory = True

    monkeypatch.setattr(Stepper, "__call__", step)
    for each in (configure, configure_filling):
        monkeypatch.setattr(loop, "configure_torch", each)
        weights.append(load_file(train(run(6)) / "model.safetensors"))
        shutil.rmtree(tmp_path / "run")
    assert filled == [False] * 6 + [True] * 6
    assert_close(*weights, rtol=0, atol=0)


def test_a_run_learns_and_its_model_opens(run, tmp_path):
    train(run(60, checkpoint_every=30, keep_checkpoints=1, export_openflamingo=True))
    output = tmp_path / "run"
    found = lines(output)
    assert sum(losses(output)[-5:]) < 0.8 * sum(losses(output)[:5])
    assert [p.name for p in (output / "checkpoints").iterdir()] == ["step-00000060"]
    last = found[-1]
    assert last["loss"] == pytest.approx(0.2 * last["loss/pairs"] + last["loss/documents"])
    assert len(last["gates/attention"]) == 2 and all(abs(gate) < 1 for gate in last["gates/attention"])
    assert last["tokens_per_s"] == pytest.approx(last["tokens"] / last["step_s"])
    assert last["mfu"] is None and last["tflops"] > 0 and last["memory_gb"] > 0 and last["learning_rate"] == 1e-2
    assert last["dropped"]["documents: one image only"] > 0

    model = FlamingoForConditionalGeneration.from_pretrained(output / "model")
    processor = FlamingoProcessor.from_pretrained(output / "model")
    said = FewShotTask(model, processor)([jpeg("red", 1)], max_new_tokens=4)
    assert len(said) == 1
    reference = openflamingo.read(output / "model" / "checkpoint.pt")
    again = openflamingo.translate(model, reference)
    for name, p in model.trained_parameters().items():
        assert torch.equal(again[name], p), name


def test_the_torture_set_is_trained_through(run, tmp_path):
    sets = torture.write(tmp_path / "torture", batch_size=2)
    one = run(12, workers=2)
    sources = {name: each.source for name, each in sets.items()}
    train(replace(one, training=replace(one.training, sources=sources)))
    dropped = lines(tmp_path / "run")[-1]["dropped"]
    for name, each in sets.items():
        for reason in each.drops:
            assert dropped.get(f"{name}: {reason}", 0) > 0, (name, reason, dropped)
    assert all(torch.isfinite(torch.tensor(losses(tmp_path / "run"))))


def test_evaluation_during_training(run, tmp_path):
    called = []

    def evaluate(model, processor):
        called.append(model.training)
        torch.rand(1)  # must not change the run
        return {"accuracy": len(called) / 10}

    train(replace(run(6), evaluate=evaluate, training=replace(run(6).training, evaluate_every=2)))
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == list(range(7))  # once before the first step
    assert [line.get("evaluation/accuracy") for line in found] == [0.1, None, 0.2, None, 0.3, None, 0.4]
    assert called == [False] * 4


def test_evaluation_in_bf16(run, tmp_path):
    def evaluate(model, processor):
        said = FewShotTask(model, processor)([jpeg("red", 1)], max_new_tokens=3)
        return {"letters": len(said[0])}

    settings = replace(run(2).training, evaluate_every=1, precision="bf16")
    train(replace(run(2), evaluate=evaluate, training=settings))
    assert len([line for line in lines(tmp_path / "run") if "evaluation/letters" in line]) == 3


def test_a_run_of_broken_gradients_stops_and_explains(run, tmp_path):
    build = run(1).build

    def broken():
        model, processor = build()
        with torch.no_grad():
            model.blocks[0].attention_gate.fill_(float("nan"))
        return model, processor

    with pytest.raises(FloatingPointError, match=r"learning_rate=0\.01.*precision=fp32") as error:
        train(replace(run(20, max_skipped_steps=3), build=broken))
    assert isinstance(error.value, ValueError) and "\n" not in str(error.value)  # the command shows it in a line
    found = lines(tmp_path / "run")
    assert [line["skipped"] for line in found] == [1, 2, 3]
    assert found[0]["loss"] is None  # JSON has no NaN


def test_a_full_disk_keeps_the_last_good_checkpoint(run, tmp_path, monkeypatch):
    write = checkpoint_files.write_share

    def full(folder, *args):
        if "4" in folder.name:
            (folder / "rank-0.safetensors").mkdir(parents=True)  # something was begun
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "rank-0.safetensors"))
        return write(folder, *args)

    monkeypatch.setattr(checkpoint_files, "write_share", full)
    with pytest.raises(OSError, match=r"step 4.*rank-0.*No space left.*step 2"):
        train(run(20, checkpoint_every=2))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    train(run(6, checkpoint_every=2))
    assert len(losses(tmp_path / "run")) == 6


@pytest.mark.parametrize("file", ["log.jsonl", "training.json", "model/model.safetensors"])
def test_a_full_disk_names_the_file(run, tmp_path, monkeypatch, file):
    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if file == "log.jsonl":

        class Full(io.StringIO):
            write = no_space

            def fileno(self):
                return 1

        monkeypatch.setattr(logging, "open", lambda *args, **kwargs: Full(), raising=False)
        monkeypatch.setattr(logging.os, "fsync", lambda handle: None)
    else:
        move = os.replace
        monkeypatch.setattr(os, "replace", lambda *a: no_space() if str(a[1]).endswith(f"run/{file}") else move(*a))
    with pytest.raises(OSError, match=rf"run/{re.escape(file)}.*No space left"):
        train(run(2))
    monkeypatch.undo()
    train(run(2))
    assert len(losses(tmp_path / "run")) == 2


def test_more_workers_than_cores_are_nothing_to_warn_of(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(run(1, workers=(os.cpu_count() or 1) + 1))


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(run, tmp_path):
    whole = run(12, checkpoint_every=4, keep_checkpoints=3)
    train(whole)
    expected = losses(tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    for damaged in ("step-00000012", "step-00000008"):
        file = checkpoints / damaged / "rank-0.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 4
        file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-00000008.*rank-0\.safetensors.*step 4"):
        train(whole)
    assert losses(tmp_path / "run") == expected
    kept = sorted(p.name for p in checkpoints.iterdir())
    assert [name for name in kept if "damaged" not in name] == ["step-00000004", "step-00000008", "step-00000012"]


@pytest.mark.parametrize("name", [".lock", "log.jsonl"])
@pytest.mark.parametrize("kind", ["a link", "not a regular file"])
def test_a_run_directory_from_somebody_else_writes_to_no_other_file(run, tmp_path, name, kind):
    train(run(1))
    file, other = tmp_path / "run" / name, tmp_path / "other"
    other.write_text("mine", encoding="utf-8")
    file.unlink()
    if kind == "a link":
        file.symlink_to(other)
    else:
        os.mkfifo(file)
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}.*{kind}"):
        train(run(2))
    assert other.read_text(encoding="utf-8") == "mine"


def test_a_log_that_is_nested_without_end_ends_there(run, tmp_path):
    train(run(1))
    with (tmp_path / "run" / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write("[" * 100_000 + "\n")
    train(run(2))
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_a_run_directory_from_somebody_else_runs_no_code(run, tmp_path):
    trap = tmp_path / "trap"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    train(run(2))
    good = tmp_path / "run" / "checkpoints" / "step-00000002"
    given = good.with_name("step-00000009")
    given.mkdir()
    for name in (".metadata", "__0_0.distcp", "rank-0.json", "rank-0.safetensors", "rank-0.pt"):
        (given / name).write_bytes(pickle.dumps(Malicious()))
    (good / ".metadata").write_bytes(pickle.dumps(Malicious()))
    for name in ("held_out.json", ".run-id", "training.json", "log.jsonl"):
        (tmp_path / "run" / name).write_bytes(pickle.dumps(Malicious()))
    with pytest.warns(UserWarning, match=r"step-00000009.*earlier version"):
        train(run(4))
    shutil.rmtree(good)
    shutil.rmtree(good.with_name("step-00000004"))
    good.with_name("step-00000009.damaged").rename(given)
    with pytest.raises(ValueError, match=r"earlier version.*output="):
        train(run(4))
    assert not trap.exists()


def test_a_checkpoint_of_another_model_is_refused(run, tmp_path, shards):
    train(run(2))
    other = run(4)
    build = other.build

    def wider():
        model, processor = build()
        model.resampler.latents = torch.nn.Parameter(torch.zeros(7, model.resampler.latents.shape[1]))
        return model, processor

    with pytest.raises(ValueError, match=r"model\.resampler\.latents.*\(4, 32\)"):
        train(replace(other, build=wider))


def test_frozen_rows_of_added_tokens_stay_and_all_else_is_trained(run, tmp_path):
    train(run(2, freeze_added_tokens=True))
    train(run(4, freeze_added_tokens=True))
    models = [tmp_path / "run" / name for name in ("start/model", "model")]
    before, after = (FlamingoForConditionalGeneration.from_pretrained(one).own_parameters() for one in models)
    rows = {name for name in after if name.startswith("added_tokens.")}
    assert rows and rows == {name for name in after if torch.equal(after[name], before[name])}
    with pytest.raises(ValueError, match="added_tokens"):
        train(run(6))


def test_trained_backbones_resume_and_are_exported(run, tmp_path):
    unfrozen = {"unfreeze_vision": True, "unfreeze_language": True, "learning_rate": 1e-3}
    train(run(2, **unfrozen))
    train(run(4, **unfrozen))
    open_model = FlamingoForConditionalGeneration.from_pretrained
    before, resumed = (
        dict(open_model(tmp_path / "run" / name).named_parameters()) for name in ("start/model", "model")
    )
    changed = {name for name in before if not torch.equal(before[name], resumed[name])}
    for part in ("vision.", "language_model.", "resampler.", "cross_attention.", "added_tokens."):
        assert any(name.startswith(part) for name in changed), part
    unused = {name for name in before if "post_layernorm" in name or "position_ids" in name}
    assert unused and not unused & changed

    shutil.rmtree(tmp_path / "run")
    train(run(4, **unfrozen))
    whole = dict(open_model(tmp_path / "run" / "model").named_parameters())
    assert all(torch.equal(whole[name], resumed[name]) for name in resumed)


def test_a_checkpoint_of_another_language_model_is_refused(run, tmp_path):
    train(run(2))
    build = run(4).build

    def other():
        model, processor = build()
        model.config.language = "somewhere/another-model"
        return model, processor

    with pytest.raises(ValueError, match=r"'language': 'language'.*'another-model'.*output="):
        train(replace(run(4), build=other))

    def others_weights():
        """Under the same name, as every export calls its language model."""
        model, processor = build()
        with torch.no_grad():
            model.get_input_embeddings().weight[3] += 1
        model.mark_as_opened()
        return model, processor

    with pytest.raises(ValueError, match=r"'frozen'.*output="):
        train(replace(run(4), build=others_weights))


def test_an_output_that_is_in_use_is_refused(run, tmp_path, monkeypatch):
    output = tmp_path / "run"
    output.mkdir()
    monkeypatch.setattr(loop, "PATIENCE", 0)
    with output_lock(output), pytest.raises(BlockingIOError, match=re.escape(str(output))):
        train(run(2))
    train(run(2))


def test_an_evaluation_that_fails_loses_no_step(run, tmp_path):
    calls = []

    def evaluate(model, processor):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("out of memory")
        return {"fine": 1}

    one = replace(run(6), evaluate=evaluate, training=replace(run(6).training, evaluate_every=3))
    with pytest.raises(MemoryError):
        train(one)
    train(one)
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(7))


def test_a_run_that_starts_again_from_nothing_leaves_no_lines(run, tmp_path):
    evaluated = replace(run(3), evaluate=lambda m, p: {"x": 1}, training=replace(run(3).training, evaluate_every=1))
    train(evaluated)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match="finished model"):  # which it would replace
        train(evaluated)
    assert len(lines(tmp_path / "run")) == 4
    shutil.rmtree(tmp_path / "run" / "model")
    train(evaluated)
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 1, 2, 3]


def test_steps_are_not_taken_back(run, tmp_path):
    """The longer model would be written again, as one of fewer steps."""
    train(run(4))
    files = [tmp_path / "run" / name for name in ("training.json", "model/model.safetensors")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(ValueError, match=r"steps=2.*has taken 4"):
        train(run(2))
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_training_ends_it_after_the_step(run, tmp_path, monkeypatch, number):
    step = Stepper.__call__
    calls = []

    def killed(self, *args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return step(self, *args)

    monkeypatch.setattr(Stepper, "__call__", killed)
    with pytest.raises(Interrupted) as stopped:
        train(run(6))
    assert (stopped.value.code, stopped.value.step) == (128 + number, 3)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    train(run(6))
    assert len(losses(tmp_path / "run")) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_an_evaluation_ends_it_at_once_and_loses_no_step(run, tmp_path, number):
    calls = []

    def evaluate(model, processor):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
            time.sleep(600)
        return {"fine": 1}

    began = time.monotonic()
    settings = replace(run(6).training, evaluate_every=3)
    with pytest.raises(Interrupted) as stopped:
        train(replace(run(6), evaluate=evaluate, training=settings))
    assert (stopped.value.code, stopped.value.step) == (128 + number, 3)
    assert time.monotonic() - began < 300
    train(run(6))
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(7))


@pytest.mark.parametrize("number, raised", [(signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_while_shards_are_made_ends_it_at_once(run, tmp_path, capsys, number, raised):
    def prepare():
        with replacing(tmp_path / "run" / "shard.tar"):
            os.kill(os.getpid(), number)
            time.sleep(600)

    before = signal.getsignal(number)
    began = time.monotonic()
    with pytest.raises(raised) as stopped:
        train(replace(run(2), prepare=prepare))
    assert time.monotonic() - began < 300 and signal.getsignal(number) == before
    assert os.listdir(tmp_path / "run") == [".lock"]  # nothing half written
    if number == signal.SIGTERM:
        assert stopped.value.code == 143 and "the same command resumes" in capsys.readouterr().err
    train(run(2))


def test_too_little_memory_is_explained(run, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\n" * 20)

    monkeypatch.setattr(Stepper, "__call__", full)
    with pytest.raises(ValueError, match=r"step 1 .*pairs\.batch_size=3.*gradient_accumulation_steps") as error:
        train(run(2))
    assert "\n" not in str(error.value)


def test_what_was_left_out_is_counted_once_a_document(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abc":
        (photos / f"{name}.jpg").write_bytes(jpeg("red", 1))
        (photos / f"{name}.txt").write_text("a red square", encoding="utf-8")
    (photos / "d.jpg").write_bytes(jpeg("red", 1)[:200])
    (photos / "d.txt").write_text("a red square", encoding="utf-8")
    one = tiny_run(tmp_path / "run", 30, workers=0)
    source = UserData(shards=str(photos), batch_size=2, shuffle=2)
    train(replace(one, training=replace(one.training, sources={"own": source})))
    said = capsys.readouterr().err
    assert "own: damaged image (1)" in said
    assert lines(tmp_path / "run")[-1]["dropped"]["own: damaged image"] > 10  # in the log, every reading


def test_tensorboard(run, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(run(3, track=("tensorboard",)))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(losses(tmp_path / "run"), rel=1e-6)
    assert "gates/attention/1" in events.Tags()["scalars"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps=0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0"),
        ({"decay_fraction": 2.0}, r"decay_fraction=2\.0"),
        ({"sources": {}}, "sources"),
        ({"track": ("mlflow",)}, "track='mlflow'.*tensorboard, wandb, trackio"),
        ({"max_skipped_steps": 0}, "max_skipped_steps=0"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm=-1\.0"),
        ({"parallel": "dpp"}, "parallel='dpp'.*auto, ddp, fsdp, hybrid"),
        ({"precision": "fp16"}, "precision='fp16'.*fp32, bf16"),
        ({"unfreeze_vision": True, "cache_features": True}, "unfreeze_vision=true.*cache_features=true"),
        ({"unfreeze_vision": True, "export_openflamingo": True}, "unfreeze_vision=true.*OpenFlamingo"),
        ({"unfreeze_language": True, "export_openflamingo": True}, "unfreeze_language=true.*OpenFlamingo"),
        ({"schedule": "step"}, "schedule='step'.*constant, cosine, linear"),
    ],
)
def test_settings_that_cannot_be(run, options, message):
    with pytest.raises(ValueError, match=message):
        check(replace(run(1).training, **options))
