"""`flamboyance train`: help, errors, and what it hands to the loop."""

from pathlib import Path
from typing import Any

import pytest

from flamboyance.cli import main
from flamboyance.recipes import RECIPES
from flamboyance.recipes.arguments import fields, parameters, resolve


def said(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(["train", *arguments]) == 0
    return capsys.readouterr().out


def test_help_lists_recipes(capsys: pytest.CaptureFixture) -> None:
    text = said(capsys, "--help")
    assert text == said(capsys)
    for name in RECIPES:
        assert f"\n  {name} " in text


@pytest.mark.parametrize("name", RECIPES)
def test_help_of_a_recipe_lists_all_that_can_be_set(name: str, capsys: pytest.CaptureFixture) -> None:
    text = said(capsys, name, "--help")
    assert text == said(capsys, name)
    keys = [*parameters(RECIPES[name]), "seed", "checkpoint_every", "workers"]
    # As the help does, so that sources that are named after their data have the same names.
    required = [f"{key}={key.upper()}" for key, one in parameters(RECIPES[name]).items() if one.required]
    run = resolve(RECIPES[name], required)
    keys += [f"{source}.{field}" for source, made in run.training.sources.items() for field in fields(made)]
    for key in keys:
        assert f"\n  {key} " in text


def test_only_the_first_rank_prints(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert said(capsys, "mini") == ""
    assert main(["train", "mini", "output=x", "stepps=1"]) == 2
    assert main(["train", "mini", "output=x", "workers=-1"]) == 2
    assert capsys.readouterr().err == ""


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture) -> None:
    for settings in (["output=x", "stepps=1"], ["steps=1"]):
        assert main(["train", "mini", *settings]) == 2
        told = capsys.readouterr()
        assert told.err.startswith("flamboyance: ") and told.err.count("\n") == 1 and not told.out


def test_the_loop_gets_the_run_and_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from flamboyance.training import loop

    given: dict[str, Any] = {}

    def train(run: Any, command: list[str]) -> Path:
        given.update(run=run, command=command)
        return Path(run.training.output) / "my model"

    monkeypatch.setattr(loop, "train", train)
    text = said(capsys, "mini", "output=here", "steps=20", "checkpoint_every=5", "workers=3", "seed=2")
    assert "the model is in here/my model" in text and "flamboyance caption IMAGES --model 'here/my model'" in text
    training = given["run"].training
    assert (training.output, training.steps, training.checkpoint_every) == ("here", 20, 5)
    assert (training.workers, training.seed) == (3, 2)
    assert given["command"][:4] == ["flamboyance", "train", "mini", "output=here"]
