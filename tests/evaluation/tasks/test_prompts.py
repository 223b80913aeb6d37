"""The exact prompts of every task, with two demonstrations and with none, under both protocols."""

from pathlib import Path

import pytest

from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.tasks import TASKS, open_task
from tests.evaluation.tasks.files import WRITE

SNAPSHOTS = Path(__file__).parent / "prompts"


def snapshot(name, folder):
    parts = []
    for protocol in ("papers", "openflamingo"):
        task = open_task(name, folder, protocol=protocol)
        for shots in (0, 2):
            prompt = Prompt.of(task, 0, (0, 1), shots)
            parts.append(f"== {protocol}, {shots} shots, {len(prompt.images)} images ==\n{prompt.text}\n")
    return "\n".join(parts)


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_the_published_ones(name, tmp_path):
    WRITE[name](tmp_path / name)
    assert snapshot(name, tmp_path) == (SNAPSHOTS / f"{name}.txt").read_text(encoding="utf-8")


def test_an_answer_is_read_as_published(tmp_path):
    for name in ("vqav2", "ok_vqa", "coco"):
        WRITE[name](tmp_path / name)

    def read(name, generated, protocol="papers"):
        task = open_task(name, tmp_path, protocol=protocol)
        return task.post_process(task.template.parse(generated))

    assert read("vqav2", " yes, it is Question: what") == "yes"
    assert read("vqav2", "1,000 Short answer: x") == "1,000"
    assert read("coco", ' a "red" bus, parkedOutput:a') == "a red bus, parked"
    assert read("ok_vqa", "surfing, swimming") == "surf"
    assert read("ok_vqa", "surfing, swimming", "openflamingo") == "surf, swim"


@pytest.mark.parametrize(
    "name, papers, published",
    [("coco", 20, 20), ("flickr30k", 20, 20), ("vqav2", 5, 5), ("ok_vqa", 5, 5), ("textvqa", 5, 10), ("vizwiz", 5, 5)],
)
def test_lengths_of_answers(name, papers, published, tmp_path):
    WRITE[name](tmp_path / name)
    assert open_task(name, tmp_path).max_new_tokens == papers
    assert open_task(name, tmp_path, protocol="openflamingo").max_new_tokens == published


def test_labels_and_orders_of_the_choices(tmp_path):
    for name in ("hateful_memes", "imagenet"):
        WRITE[name](tmp_path / name)
    memes = open_task("hateful_memes", tmp_path)
    assert memes.labels == ("no", "yes") and memes.permutations == 6
    assert open_task("hateful_memes", tmp_path, protocol="openflamingo").permutations == 1
    things = open_task("imagenet", tmp_path)
    assert things.labels == ("tench", "great white shark") and things.permutations == 1
