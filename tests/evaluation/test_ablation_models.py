"""`--ablate` with models of transformers: each answer is the model's own to the demonstrations that are recorded."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from flamboyance.cli import main
from flamboyance.evaluation import changes
from flamboyance.evaluation.results import read_rows
from flamboyance.evaluation.task import Task
from flamboyance.evaluation.tasks import open_own
from flamboyance.images import load_image
from flamboyance.reports import ablation
from flamboyance.reports.evaluation_run import read_run
from tests.evaluation.answers import tiny_vlms
from tests.evaluation.small_tasks import QUESTIONS, WORDS, draw
from tests.tiny import save_tiny_flamingo

WAYS = (("llava", "random"), ("llava", "fixed"), ("qwen2.5-vl", "fixed"), ("idefics3", "random"))
QUERIES = 4


def table(folder: Path, columns: str) -> Path:
    """A file of 10 pictures with what the columns say."""
    draw(folder / "pictures", 10, 0)
    lines = [columns]
    for i in range(10):
        values = {"image": f"pictures/{i}.png", "text": WORDS[i % 6], "answer": ("yes", "no")[i % 2],
                  "label": ("cat", "dog")[i % 2], "question": QUESTIONS[i % 3].split("?")[0] + "?"}  # fmt: skip
        lines.append(",".join(values[name] for name in columns.split(",")))
    file = folder / "data.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def ablated(file: Path, model: Path, output: Path, *options: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of every cell: asked here, at 2 shots."""
    given = [str(file), "--model", str(model), "--shots", "2", "--seeds", "0", "--beams", "1"]
    given += ["--queries", str(QUERIES), "--dtype", "float32", "--batch-size", "4", "--ablate"]
    given += ["--output", str(output), *options]
    assert main(["evaluate", *given]) == 0
    return {cell.parent.name: read_rows(cell) for cell in output.glob("*/*/predictions.jsonl")}


def requests(task: Task):
    """What the user says beside an image, as a function of the question."""
    return lambda asked: task.template.query(*asked).replace("<image>", "").strip()


class Alone:
    """Answers a recorded row with transformers alone, by the images and texts that the row names."""

    def __init__(self, folder: Path):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, row: dict[str, Any], request, label: str = "") -> Any:
        chat, images = [], []
        for one in [*row["demonstrations"], row]:
            shown = [one["image"]] if one["image"] else []
            images += [load_image(image) for image in shown]
            content = [*({"type": "image"} for _ in shown), {"type": "text", "text": request(one["asked"])}]
            chat.append({"role": "user", "content": content})
            if one is not row:
                chat.append({"role": "assistant", "content": [{"type": "text", "text": one["answer"]}]})
        if label:
            chat.append({"role": "assistant", "content": [{"type": "text", "text": label}]})
        text = self.processor.apply_chat_template(chat, add_generation_prompt=not label, tokenize=False)
        text = text[: text.rindex(label) + len(label)]
        return self.processor(text=[text], images=[images], return_tensors="pt", add_special_tokens=False)

    @torch.inference_mode()
    def generated(self, row: dict[str, Any], request, most: int) -> str:
        inputs = self.inputs(row, request)
        out = self.model.generate(**inputs, max_new_tokens=most, do_sample=False)
        return self.processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    @torch.inference_mode()
    def score(self, row: dict[str, Any], request, label: str) -> float:
        before = self.inputs(row, request)["input_ids"].shape[1]
        whole = self.inputs(row, request, label)
        ids = whole["input_ids"][0, before:]
        logits = self.model(**whole).logits[0, before - 1 : -1].log_softmax(-1)
        return logits.gather(1, ids[:, None]).mean().item()


@pytest.mark.parametrize("kind, way", WAYS)
def test_answers_are_those_of_transformers_alone(kind, way, tmp_path, capsys):
    model = tiny_vlms.KINDS[kind](tmp_path / "model")
    file = table(tmp_path, "image,question,answer")
    cells = ablated(file, model, tmp_path / "run", "--demonstrations", way)
    assert "without the nearest neighbours' vote" in capsys.readouterr().err
    names = {f"2-{way}-0-{change}" for change in changes.TITLES}
    assert set(cells) == {f"0-{way}-0", f"2-{way}-0", "0-majority-0-baseline", *names}
    task, alone = open_own(file), Alone(model)
    said = defaultdict(list)
    for name, rows in cells.items():
        if "baseline" in name:
            continue
        assert len(rows) == QUERIES
        for row in rows:
            assert len(row["demonstrations"]) == 2
            expected = alone.generated(row, requests(task), 20)
            assert row["generated"].strip() == expected.strip(), (name, row["id"])
            said[name].append(row["generated"])
    assert len({tuple(answers) for answers in said.values()}) > 4  # the changes are seen
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "What in the demonstrations is used" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["qwen2.5-vl", "idefics3"])
def test_labels_are_those_of_transformers_alone(kind, tmp_path):
    model = tiny_vlms.KINDS[kind](tmp_path / "model")
    file = table(tmp_path, "image,label")
    tower = save_tiny_flamingo(tmp_path / "flamingo") / "vision"
    cells = ablated(file, model, tmp_path / "run", "--tower", str(tower), "--features", str(tmp_path / "features"))
    assert "2-neighbours-0-baseline" in cells and "2-random-0-no_questions" not in cells
    task, alone = open_own(file), Alone(model)
    for name, rows in cells.items():
        for row in rows[:1] if "baseline" not in name else ():
            for label, score in row["scores"].items():
                assert score == pytest.approx(alone.score(row, requests(task), label), abs=1e-3), name
    (one,) = ablation.ablations(read_run(tmp_path / "run"))
    assert {part.name for part in one.parts} == set(changes.TITLES) - {"no_questions"}
    assert {part.name for part in one.baselines} == {"majority", "neighbours"}


def test_what_changes_is_what_the_row_says(tmp_path):
    """Images and answers in the recorded rows, change by change."""
    model = tiny_vlms.llava(tmp_path / "model")
    cells = ablated(table(tmp_path, "image,text"), model, tmp_path / "run")
    plain = {row["id"]: row for row in cells["2-random-0"]}
    answer_of = {str((tmp_path / "pictures" / f"{i}.png").absolute()): WORDS[i % 6] for i in range(10)}
    for change in set(changes.TITLES) - {"no_questions"}:
        for row in cells[f"2-random-0-{change}"]:
            before, after = plain[row["id"]]["demonstrations"], row["demonstrations"]
            images = [one["image"] for one in after], [one["image"] for one in before]
            answers = [one["answer"] for one in after], [one["answer"] for one in before]
            assert answers[1] == [answer_of[image] for image in images[1]]
            if change == "no_images":
                assert images[0] == [None, None] and answers[0] == answers[1]
            elif change == "blank_images":
                assert {Path(image).name for image in images[0]} == {"16x16.png"} and answers[0] == answers[1]
            elif change == "shuffled_images":
                assert sorted(images[0]) == sorted(images[1]) and answers[0] == answers[1]
            elif change == "other_images":
                assert not {*images[0]} & {*images[1], row["image"]} and answers[0] == answers[1]
            elif change == "shuffled_answers":
                assert sorted(answers[0]) == sorted(answers[1]) and images[0] == images[1]
            else:
                assert set(answers[0]) <= set(WORDS) and images[0] == images[1]
    asked = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["settings"]["ablate"]
    assert set(asked) == set(changes.TITLES)
