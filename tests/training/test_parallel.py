"""Two real processes (gloo) train as one does, for tied and untied language models, added tokens and all."""

from functools import cache

import pytest
import torch
from torch.testing import assert_close

from flamboyance.processes import World
from flamboyance.training.checkpoint import Checkpoints
from flamboyance.training.optimizer import make_optimizer
from tests.processes import ranks
from tests.training import worker
from tests.training.batches import training

STEPS = 15
FAMILIES = {"opt": "tied", "llama": "untied"}
MAIN = ["ddp:opt", "fsdp:opt", "ddp:llama", "fsdp:llama"]
SHORT = ["fsdp:gpt_neox:short", "fsdp:opt:checkpointed:short", "hybrid:opt:short", "fsdp:opt:bf16:short"]
EVALUATED = ["fsdp:opt:evaluated:short", "fsdp:llama:evaluated:bf16:short"]
QUANTIZED = "fsdp:llama:quantized:short"
UNFROZEN = ["ddp:opt:unfrozen:short", "fsdp:opt:unfrozen:checkpointed:short", "fsdp:llama:unfrozen:bf16:short"]
SAVED = ["ddp:opt:saved:short", "fsdp:opt:saved:short", "hybrid:llama:saved:short"]


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("two") / "found.pt"
    ways = (*MAIN, *SHORT, *EVALUATED, QUANTIZED, *UNFROZEN, *SAVED)
    ranks(worker.main, [str(STEPS), str(path), *ways], log=path.with_suffix(".log"))
    return {**torch.load(path), "folder": path.parent}


@cache
def alone(family: str, precision: str = "fp32", **flags: bool) -> dict:
    here = World()
    return worker.run(here, "auto", family, STEPS, precision=precision, **flags)


@pytest.mark.parametrize("way", MAIN)
def test_two_processes_follow_one(together, way):
    found, single = together[way], alone(way.split(":")[1])
    assert single["loss"][-1] < 0.8 * single["loss"][0]  # it learns, so that following means something
    assert found["loss"] == pytest.approx(single["loss"], rel=1e-4)
    assert found["norm"] == pytest.approx(single["norm"], rel=1e-3)
    for name, value in single["parameters"].items():
        assert_close(found["parameters"][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    kinds = set(found["kinds"].values())
    assert kinds == ({"Parameter"} if way.startswith("ddp") else {"DTensor"})  # every part, the frozen ones too


@pytest.mark.parametrize("way", SHORT)
def test_and_in_every_other_way(together, way):
    low = "bf16" in way
    losses = alone(way.split(":")[1], "bf16" if low else "fp32")["loss"][:8]
    assert together[way]["loss"] == pytest.approx(losses, rel=0.05 if low else 1e-4)


def test_a_quantized_language_model_is_held_whole_and_the_rest_sharded(together):
    found = together[QUANTIZED]
    assert found["loss"] == pytest.approx(alone("llama", packed=True)["loss"][:8], rel=1e-4)
    assert found["loss"] != pytest.approx(alone("llama")["loss"][:8], rel=1e-4)  # it is another model
    for name, kind in found["kinds"].items():
        assert kind == ("Parameter" if name.startswith("language_model.") else "DTensor"), name


@pytest.mark.parametrize("way", EVALUATED)
def test_a_sharded_model_is_evaluated_before_its_first_step(together, way):
    family, low = way.split(":")[1], "bf16" in way
    single = alone(family, "bf16" if low else "fp32", evaluated=True)
    if not low:
        assert together[way]["said"] == single["said"]
    assert len(together[way]["said"][0]) == len(single["said"][0])
    assert together[way]["loss"] == pytest.approx(single["loss"][:8], rel=0.05 if low else 1e-4)


@pytest.mark.parametrize("way", UNFROZEN)
def test_trained_backbones_follow_one_process_too(together, way):
    family, low = way.split(":")[1], "bf16" in way
    single = alone(family, "bf16" if low else "fp32", unfrozen=True)
    assert together[way]["loss"] == pytest.approx(single["loss"][:8], rel=0.05 if low else 1e-4)
    start = dict(worker.make(family).named_parameters())
    for part in ("vision.", "language_model."):
        moved = [
            n for n, p in together[way]["parameters"].items() if n.startswith(part) and not torch.equal(p, start[n])
        ]
        assert len(moved) > 10, part
    assert not any("post_layernorm" in name for name in together[way]["parameters"])  # the patches come before it


def test_added_tokens_train_under_sharding(together):
    for family in ("opt", "llama"):
        start = worker.make(family).trained_parameters()
        for name, value in together[f"fsdp:{family}"]["parameters"].items():
            if name.startswith("added_tokens."):
                assert (value - start[name]).abs().max() > 1e-3, name


def test_every_family_here_is_what_it_says():
    for family, kind in FAMILIES.items():
        assert worker.make(family).added_tokens.tied == (kind == "tied")
    assert not worker.make("gpt_neox").added_tokens.tied


@pytest.mark.parametrize("way", SAVED)
def test_all_ranks_agree_on_the_checkpoint_before_a_damaged_one(together, way):
    found = together[way]["resumed"]
    assert found["every"] == [{"step": [1, 1], "from": [0, 1]}] * 2
    for name, value in found["first"].items():
        assert torch.equal(found["now"][name], value), name
    first, second = found["warned"]
    assert len(first) == 1 and "rank-1.safetensors has changed" in first[0] and not second


@pytest.mark.parametrize("way", SAVED)
def test_one_process_reads_what_two_have_written(together, way):
    kind, family, *_ = way.split(":")
    model = worker.make(family)
    trained = model.trained_parameters()
    optimizer = make_optimizer(trained, training())
    states = Checkpoints(together["folder"] / f"{kind}-{family}", World(), 2, {}).load(trained, optimizer)
    assert [state["step"] for state in states] == [1, 1]
    for name, value in together[way]["resumed"]["first"].items():
        assert torch.equal(optimizer.state[trained[name]]["exp_avg"], value), name
    for name, value in together[way]["parameters"].items():
        assert torch.equal(trained[name].detach(), value), name
