"""`plan`: arithmetic of memory, traffic and time against sums done by hand; the command's words and figures."""

import json
from dataclasses import fields, replace

import pytest

from flamboyance.cli import main
from flamboyance.data.formats.mmc4 import MMC4
from flamboyance.data.formats.pairs import Pairs
from flamboyance.planning import cost
from flamboyance.planning.memory import Devices, Memory
from flamboyance.planning.plan import REACHED, Assumptions, Planner
from flamboyance.training.config import TrainingConfig
from flamboyance.training.hardware import KINDS, Hardware, find, this_machine
from tests.model.families import make

CARD = Hardware("card", 1e12, 1e11, 64e6, 1e10, 1e9, 1e8, reserve=1e3, fragments=0.1)
SOURCES = {
    "pairs": Pairs(shards="x", batch_size=8),
    "documents": MMC4(shards="x", batch_size=4, max_tokens=48, max_images=4),
}
TRAINING = TrainingConfig(output="x", sources=SOURCES, steps=100, precision="bf16")


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """The plans of these tests are of one model: what a pass of it costs is counted once for each kind of batch."""
    found, trace = {}, cost.trace

    def same(config, batches, **options):
        key = config.to_json_string(), *batches, *sorted(options.items())
        if key not in found:
            found[key] = trace(config, batches, **options)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "trace", same)
        yield


@pytest.fixture(scope="module")
def planner():
    return Planner(make("llama").config, CARD, Assumptions(mfu=0.5, images_per_document=2.0))


@pytest.fixture(scope="module")
def trained(planner):
    return sum(p.numel() for p in make("llama").trained_parameters().values())


def test_memory_of_a_device(planner, trained):
    model = make("llama")
    frozen = sum(p.numel() for p in model.parameters()) - trained
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    single = planner.plan(TRAINING, 1).memory
    assert single.trained == 4 * trained and single.gradients == 4 * trained and single.optimizer == 8 * trained
    assert 2 * frozen <= single.frozen <= 2 * frozen + buffers
    assert single.gathered == 0 and single.reserve == 1e3
    assert single.fragments == pytest.approx(0.1 * (single.total - 1e3) / 1.1)
    shared = planner.plan(replace(TRAINING, parallel="fsdp"), 16).memory
    assert shared.trained == 4 * trained / 16 and shared.optimizer == 8 * trained / 16
    assert shared.gradients == 4 * trained  # of the first source, whole until the second's are there
    assert shared.gathered > 0
    within = planner.plan(replace(TRAINING, parallel="hybrid"), 16).memory
    assert within.trained == 4 * trained / 8
    alone = planner.plan(replace(TRAINING, parallel="fsdp", sources={"pairs": SOURCES["pairs"]}), 16).memory
    assert alone.gradients == 4 * trained / 16
    assert single.total == sum(getattr(single, f.name) for f in fields(Memory))


def test_memory_follows_the_parts_that_are_trained(planner, trained):
    model = make("llama")
    rows = sum(p.numel() for p in model.added_tokens.parameters())
    frozen = planner.plan(replace(TRAINING, freeze_added_tokens=True), 1)
    assert frozen.memory.trained == 4 * (trained - rows)
    for part, setting in (("vision", "unfreeze_vision"), ("language_model", "unfreeze_language")):
        plan, usual = (planner.plan(training, 8) for training in (replace(TRAINING, **{setting: True}), TRAINING))
        unused = sum(p.numel() for n, p in model.named_parameters() if "post_layernorm" in n) if part == "vision" else 0
        more = sum(p.numel() for p in getattr(model, part).parameters()) - unused
        assert plan.memory.trained == 4 * (trained + more)
        assert plan.memory.optimizer == 8 * (trained + more)
        assert plan.traffic.link == pytest.approx(usual.traffic.link * (trained + more) / trained)
        assert sum(n for (p, d), n in plan.flops.items() if p == part and d == "backward") > sum(
            n for (p, d), n in usual.flops.items() if p == part and d == "backward"
        )


def test_the_largest_batch_is_what_has_to_fit(planner):
    few = replace(TRAINING, sources={"documents": SOURCES["documents"]})
    more = replace(TRAINING, sources={"documents": replace(SOURCES["documents"], max_images=6)})
    a, b = planner.plan(few, 1), planner.plan(more, 1)
    assert a.memory.temporary < b.memory.temporary
    assert a.flops == b.flops  # times are estimated with the usual two images


def test_bytes_sent(planner, trained):
    gradients = 4 * trained
    plan = planner.plan(TRAINING, 16)
    assert plan.devices == Devices("ddp", 2, 8)
    assert plan.traffic.link == pytest.approx(2 * gradients * 7 / 8)
    assert plan.traffic.network == pytest.approx(2 * gradients / 8 / 2)
    assert planner.plan(TRAINING, 8).traffic.network == 0
    assert planner.plan(TRAINING, 1).traffic.link == 0
    sharded, within = (planner.plan(replace(TRAINING, parallel=p), 16).traffic for p in ("fsdp", "hybrid"))
    assert within.network == plan.traffic.network  # gradients alone leave the node
    assert sharded.network > within.network
    # One micro-step more gathers everything again, and sends gradients once all the same.
    twice = planner.plan(replace(TRAINING, parallel="fsdp", gradient_accumulation_steps=2), 16).traffic
    assert twice.link - sharded.link == pytest.approx(sharded.link - gradients * 7 / 8)


def test_time_of_a_step(planner, trained):
    plan = planner.plan(TRAINING, 16)
    flops, backward = sum(plan.flops.values()), sum(n for (_, d), n in plan.flops.items() if d == "backward")
    assert plan.compute_s == pytest.approx(flops / 0.5e12 + 28 * trained / (REACHED * 1e10))
    sending = max(plan.traffic.link / 1e9, plan.traffic.network / 1e8) / REACHED
    assert plan.network_s == pytest.approx(sending)
    hidden = backward / 2 / 0.5e12  # the last source's backward pass
    assert plan.exposed_network_s == pytest.approx(max(0, sending - hidden)) and plan.exposed_network_s > 0
    assert plan.total_s == pytest.approx(100 * (plan.compute_s + plan.exposed_network_s))
    assert planner.plan(TRAINING, 1).exposed_network_s == 0
    slow, fast = (planner.plan(replace(TRAINING, precision=p), 1) for p in ("fp32", "bf16"))
    assert slow.compute_s - slow.update_s == pytest.approx(10 * (fast.compute_s - fast.update_s))


def test_data_of_a_step(planner):
    plan = planner.plan(replace(TRAINING, gradient_accumulation_steps=3), 16)
    assert plan.samples == (8 + 4) * 3 * 16
    assert plan.images == (8 + 4 * 2) * 3 * 16
    assert plan.tokens == (8 * 32 + 4 * 48) * 3 * 16
    assert plan.read_bytes == plan.images * 60e3
    assert plan.decoding_cores == pytest.approx(plan.images / plan.step_s / 400 / 2)


def test_changes_are_tried_in_order_and_help(planner):
    small = {"pairs": replace(SOURCES["pairs"], batch_size=3), "documents": replace(SOURCES["documents"], batch_size=2)}
    training = replace(TRAINING, sources=small)
    plan = planner.plan(training, 16)
    changes = list(planner.cheaper_plans(plan))
    assert [c for c, _ in changes[:3]] == [
        "parallel=hybrid",
        "parallel=fsdp",
        "parallel=fsdp checkpoint_activations=true",
    ]
    assert changes[-1][0].endswith("pairs.batch_size=1 documents.batch_size=1 gradient_accumulation_steps=2")
    assert changes[2][1].memory.total < changes[1][1].memory.total
    assert changes[-1][1].memory.total < changes[2][1].memory.total
    assert {p.samples for c, p in changes if "gradient_accumulation_steps" not in c} == {plan.samples}
    single = [c for c, _ in planner.cheaper_plans(planner.plan(training, 1))]
    assert single[0] == "checkpoint_activations=true" and not any("parallel" in c for c in single)


def test_devices_fill_nodes(planner):
    with pytest.raises(ValueError, match=r"12 .*8"):
        planner.plan(TRAINING, 12)
    assert planner.plan(TRAINING, 12, per_node=4).devices == Devices("ddp", 3, 4)
    assert planner.plan(replace(TRAINING, parallel="fsdp"), 1).devices.spread == "single"


def test_kinds():
    assert find("h200").name == "H200-141GB"
    assert find("B200").bf16 > 2e15
    with pytest.raises(ValueError, match=r"A100.*H100-80GB"):
        find("A100")
    with pytest.raises(ValueError, match="V100"):
        find("V100")
    assert find("cpu") == this_machine() and this_machine().is_cpu
    for kind in KINDS.values():
        assert kind.fp32 <= kind.bf16 and kind.network < kind.link < kind.memory_bandwidth
        assert kind.memory / 2**30 == pytest.approx(float(kind.name.split("-")[1].rstrip("GB")), rel=0.07)


# The command ----------------------------------------------------------------------------------------------------------

RECIPE = '''
from flamboyance.training.run import TrainingRun
from tests.model.families import make
from tests.planning.test_plan import TRAINING

def tiny(*, output: str, shards: str) -> TrainingRun:
    """Tiny."""
    return TrainingRun(TRAINING, lambda: None, lambda: make("llama").config)
'''


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "plan_recipe.py"
    path.write_text(RECIPE, encoding="utf-8")
    return f"{path}:tiny"


def test_command_prints_its_estimates(recipe, capsys):
    assert main(["plan", recipe, "--gpus", "16", "steps=200"]) == 0
    text = capsys.readouterr().out
    for words in (
        "16 × H100-80GB (2 nodes of 8): ddp, bf16",
        "8 pairs and 4 documents on each",
        "AdamW's moments",
        "fits,",
        "all 200 steps",
        "MB/s",
        "35% of 989 TFLOP/s",
    ):
        assert words in " ".join(text.split())


def test_what_is_not_counted_is_said(recipe, capsys, planner):
    assert planner.plan(TRAINING, 1).not_counted == ()
    config = make("llama").config
    config.resampler = {**config.resampler, "max_frames": 8}
    videos = Planner(config, CARD).plan(replace(TRAINING, cache_features=True), 1)
    assert len(videos.not_counted) == 2 and "may have 8" in videos.not_counted[0]
    for gpus in ("1", "1,8"):
        assert main(["plan", recipe, "--gpus", gpus, "cache_features=true"]) == 0
        assert "Not counted: cache_features" in " ".join(capsys.readouterr().out.split())


def test_command_says_what_to_change(recipe, capsys, monkeypatch):
    # Room for the checkpointed model, and not for all activations.
    planner = Planner(make("llama").config, CARD)
    plain, saved = (planner.plan(replace(TRAINING, checkpoint_activations=c), 1).memory.total for c in (False, True))
    monkeypatch.setitem(KINDS, "small", replace(CARD, name="small", memory=(plain + saved) / 2))
    assert main(["plan", recipe, "--kind", "small"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "does not fit" in text and "fits with checkpoint_activations=true" in text
    monkeypatch.setitem(KINDS, "small", replace(CARD, name="small", memory=1e5))
    assert main(["plan", recipe, "--kind", "small"]) == 0
    assert "even with checkpoint_activations=true pairs.batch_size=1" in " ".join(capsys.readouterr().out.split())


def test_command_gives_figures_for_several_numbers(recipe, capsys):
    assert main(["plan", recipe, "--gpus", "1,8,64"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[:2] for line in table.splitlines() if line[:1].isdigit()] == [
        ["1", "single"],
        ["8", "ddp"],
        ["64", "ddp"],
    ]
    assert main(["plan", recipe, "--gpus", "1,64", "--mfu", "0.1", "--json"]) == 0
    one, many = json.loads(capsys.readouterr().out)
    assert (one["devices"], many["nodes"], many["samples"]) == (1, 8, 64 * one["samples"])
    assert main(["plan", recipe, "--gpus", "64", "--network", "40", "--json"]) == 0
    (slow,) = json.loads(capsys.readouterr().out)
    assert slow["network_s"] == pytest.approx(slow["network_bytes"] / 5e9 / REACHED)
    assert one["memory"]["total"] == sum(v for k, v in one["memory"].items() if k not in ("total", "capacity"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--gpus", "12"], "12 devices do not fill nodes of 8"),
        (["--kind", "V100"], "V100"),
        (["stepz=3"], "there is no setting 'stepz'"),
        (["--gpus", "0"], "'0' is not a whole number from 1 up"),
        (["--mfu", "-1"], "'-1' is not a number above 0"),
    ],
)
def test_mistakes_are_told_in_a_line(recipe, capsys, arguments, words):
    try:
        status = main(["plan", recipe, *arguments])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and words in error and error.count("\n") == 1
