"""key=value: what is taken, and what is refused in which words."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from flamboyance.recipes import RECIPES
from flamboyance.recipes.arguments import convert, describe, documentation, find, parameters, resolve

OWN = '''
from __future__ import annotations
import dataclasses
from dataclasses import dataclass
from flamboyance.data.formats.pairs import Pairs
from flamboyance.training.config import TrainingConfig
from flamboyance.training.run import TrainingRun

@dataclass(frozen=True, kw_only=True)
class Mine(Pairs):
    speed: int | None = None

def small(*, output: str, size=4, names: tuple[str, ...] = ()) -> TrainingRun:
    training = TrainingConfig(output=output, sources={"web": Mine(shards=names or "a.tar", batch_size=size)}, steps=7)
    return TrainingRun(training, build=lambda: (None, None), outline=lambda: None)

@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape.

    Args:
        width: in pixels.
    """
    width: int
    names: tuple[str, ...] = ("a",)

def grouped(*, output: str, shape: Shape, seed: int = 3) -> TrainingRun:
    """Trains."""
    run = small(output=output, size=shape.width, names=shape.names)
    return dataclasses.replace(run, training=dataclasses.replace(run.training, seed=seed))
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's recipe file, as the command line names it."""
    file = tmp_path / f"recipe_of_{tmp_path.name}.py"
    file.write_text(OWN, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return f"{file}:small"


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("12", int, 12),
        ("1_000", int, 1000),
        ("1e-4", float, 1e-4),
        ("No", bool, False),
        ("on", bool, True),
        ("none", int | None, None),
        ("3", int | None, 3),
        ("false", bool | None, False),
        ("none", str | None, None),
        ("0.9,0.98", tuple[float, float], (0.9, 0.98)),
        ("(0.9, 0.98)", tuple[float, float], (0.9, 0.98)),
        ("wandb,trackio", tuple[str, ...], ("wandb", "trackio")),
        ("", tuple[str, ...], ()),
        ("bf16", Literal["fp32", "bf16"], "bf16"),
        ("pipe:cut -d, -f1", str | tuple[str, ...], "pipe:cut -d, -f1"),
        ("a=b", str, "a=b"),
    ],
)
def test_values_have_the_annotated_type(text: str, kind: Any, value: Any) -> None:
    found = convert(text, kind, "x")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, kind, expected",
    [
        ("3.5", int, "a whole number"),
        ("nan", float, "a number"),
        ("inf", float, "a number"),
        ("maybe", bool, "true or false"),
        ("many", int | None, "a whole number or none"),
        ("fp16", Literal["fp32", "bf16"], "fp32 or bf16"),
        ("0.9", tuple[float, float], "2 values"),
        ("a,b", tuple[int, ...], "a whole number"),
        ("x", dict[str, int], "recipe file"),
    ],
)
def test_other_values_are_refused(text: str, kind: Any, expected: str) -> None:
    with pytest.raises(ValueError, match="speed") as error:
        convert(text, kind, "speed")
    assert expected in str(error.value)


def test_settings_reach_recipe_training_and_source(own: str) -> None:
    recipe = find(own, RECIPES)
    run = resolve(
        recipe, ["output=o", "size=2", "names=b.tar,c.tar", "seed=5", "web.speed=9", "web.flip=0", "track=wandb"]
    )
    web: Any = run.training.sources["web"]
    assert (run.training.output, run.training.seed, run.training.track) == ("o", 5, ("wandb",))
    assert (web.shards, web.batch_size, web.speed, web.flip) == (("b.tar", "c.tar"), 2, 9, 0.0)
    assert run.training.steps == 7
    assert type(web).__name__ == "Mine"


def test_what_is_measured_is_read_as_what_is_trained_on() -> None:
    said = ["output=o", "own.template=<image>A photo of {text}", "own.max_tokens=64"]
    run = resolve(RECIPES["finetune"], ["data=photos/", *said])
    own = run.training.sources["own"]
    assert own.max_tokens == 64 and own.template.startswith("<image>A photo")
    for function in (run.build, run.evaluate, run.prepare):
        assert isinstance(function, partial)
        assert any(one is own for one in (*function.args, *function.keywords.values()))

    new = ["output=o", "vision=v", "language=l", "validation=a/held.csv,b/captions.csv"]
    run = resolve(
        RECIPES["new"], [*new, "data=c/captions.csv", "captions.max_tokens=64", "held.template=<image>{text}"]
    )
    assert isinstance(run.evaluate, partial)
    held = dict(run.evaluate.keywords["sources"])
    assert held == run.validation
    assert [held[name].max_tokens for name in ("held", "captions")] == [64, 64]  # it is the only source
    assert [held[name].shards for name in ("held", "captions")] == ["a/held.csv", "b/captions.csv"]
    assert held["held"].template == "<image>{text}" != held["captions"].template

    run = resolve(RECIPES["new"], [*new, "data=c/captions.csv,d/other.csv", "captions.max_tokens=64"])
    assert [run.validation[name].max_tokens for name in ("held", "captions")] == [256, 64]
    with pytest.raises(ValueError, match=r"sources are held, captions"):
        resolve(RECIPES["new"], [*new, "data=c/captions.csv", "nothing.max_tokens=64"])


def test_the_fields_of_a_group_are_settings(own: str) -> None:
    recipe = find(own.replace(":small", ":grouped"), RECIPES)
    taken = parameters(recipe)
    assert [(name, one.required) for name, one in taken.items()] == [
        *(("output", True), ("width", True), ("names", False), ("seed", False))
    ]
    training = resolve(recipe, ["output=o", "width=5", "names=b.tar"]).training
    web: Any = training.sources["web"]
    assert (web.batch_size, web.shards, training.seed) == (5, ("b.tar",), 3)
    assert documentation(recipe).startswith("Trains.\n\nThe shape.") and "in pixels" in documentation(recipe)
    with pytest.raises(ValueError, match=r"needs width"):
        resolve(recipe, ["output=o"])
    with pytest.raises(ValueError, match=r"no setting 'shape'"):
        resolve(recipe, ["output=o", "width=5", "shape=1"])


@pytest.mark.parametrize(
    "settings, words",
    [
        (["size=1"], ["needs output", "output="]),
        (["output=o", "stesp=3"], ["'stesp'", "did you mean steps?", "names"]),
        (["output=o", "web.batchsize=3"], ["did you mean web.batch_size?", "max_pixels"]),
        (["output=o", "rate=1e-3"], ["'rate'", "did you mean learning_rate?"]),
        (["output=o", "warmup=3"], ["'warmup'", "did you mean warmup_steps?"]),
        (["output=o", "wev.flip=3"], ["did you mean web.flip?", "sources are web"]),
        (["output=o", "seed"], ["'seed'", "key=value"]),
        (["output=o", "seed=1", "seed=2"], ["twice"]),
        (["output=o", "size=none"], ["size=none", "a whole number"]),
        (["output=o", "sources=1"], ["no setting 'sources'"]),
    ],
)
def test_mistakes_are_named(own: str, settings: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError, match=words[0].replace("?", ".")) as error:
        resolve(find(own, RECIPES), settings)
    for word in words:
        assert word in str(error.value)


def test_unknown_recipes_and_files(tmp_path: Path, own: str) -> None:
    with pytest.raises(ValueError, match="openflamingo-3b"):
        find("openflamingo3b", RECIPES)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find(str(tmp_path / "nowhere.py:small"), RECIPES)
    with pytest.raises(ValueError, match=r"large.*small"):
        find(own.replace(":small", ":large"), RECIPES)
    (tmp_path / "json.py").write_text("def small(): ...", encoding="utf-8")
    with pytest.raises(ValueError, match="json"):
        find(str(tmp_path / "json.py:small"), RECIPES)


def test_every_parameter_of_every_recipe_can_be_said() -> None:
    for recipe in RECIPES.values():
        for one in parameters(recipe).values():
            assert "class" not in describe(one.kind)
            if isinstance(one.default, (int, float, str)):
                assert convert(str(one.default), one.kind, one.name) == one.default
