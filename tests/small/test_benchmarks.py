"""The small benchmarks on held-out drawings: demonstrations define every query, and none of them is its own picture."""

from collections import Counter
from pathlib import Path

import pytest

from flamboyance.evaluation.tasks import user_data
from flamboyance.files import read_json_lines
from flamboyance.small import benchmarks

ABOUT = {row["file"]: row for _, row in read_json_lines(benchmarks.HOME / "pictures.jsonl")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmarks.write(tmp_path_factory.mktemp("small") / "benchmarks", 21)


def rows(folder: Path, name: str) -> list[dict]:
    return [row for _, row in read_json_lines(folder / f"{name}.jsonl")]


@pytest.mark.parametrize("name, ways", [("words-2way", 2), ("words-2way-artists", 2), ("words-5way", 5)])
def test_made_up_words_are_defined_by_the_demonstrations(folder: Path, name: str, ways: int) -> None:
    asked = Counter()
    for row in rows(folder, name):
        query, shown = ABOUT[row["image"]], row["demonstrations"]
        words = {ABOUT[one["image"]]["concept"]: one["label"] for one in shown}
        assert len(words) == len(set(words.values())) == ways and row["label"] == words[query["concept"]]
        assert len(shown) == benchmarks.SHOTS[name] == len({one["image"] for one in shown})
        assert row["image"] not in {one["image"] for one in shown}
        for start in range(0, len(shown), ways):  # each block has every word once
            assert len({one["label"] for one in shown[start : start + ways]}) == ways
        pictures = [query, *(ABOUT[one["image"]] for one in shown)]
        assert query["collection"] == "twemoji" and all(picture["new"] for picture in pictures)
        artists = {ABOUT[one["image"]]["collection"] for one in shown}
        assert "twemoji" not in artists if name.endswith("artists") else artists == {"twemoji"}
        asked[query["concept"]] += 1
    assert max(asked.values()) - min(asked.values()) <= 1  # each thing is asked equally often


def test_a_word_means_another_thing_in_another_query(folder: Path) -> None:
    meant = {(ABOUT[row["image"]]["concept"], row["label"]) for row in rows(folder, "words-2way")}
    assert len({word for _, word in meant}) == 2 and len(meant) > 10
    labels = Counter(row["label"] for row in rows(folder, "words-2way"))
    assert max(labels.values()) - min(labels.values()) <= 1  # no word is right more often


def test_names_are_asked_of_drawings_by_another_artist(folder: Path) -> None:
    task = user_data.load(folder / "naming-rices.jsonl", folder / "naming-support.jsonl")
    assert len(task.queries) == 21 and len(task.support) > 40
    for example in task.queries:
        row = ABOUT[f"pictures/{example.image.name}"]
        assert (row["collection"], row["new"], row["concept"]) == ("twemoji", False, example.answer)
    assert {ABOUT[f"pictures/{example.image.name}"]["collection"] for example in task.support} == {"noto"}
    assert {one.answer for one in task.queries} <= {one.answer for one in task.support}
    assert [row["image"] for row in rows(folder, "naming")] == [row["image"] for row in rows(folder, "naming-rices")]
    for row in rows(folder, "naming"):  # the demonstrations show the form of the answer, not the answer
        shown = [ABOUT[one["image"]] for one in row["demonstrations"]]
        assert len(shown) == benchmarks.SHOTS["naming"] and {one["collection"] for one in shown} == {"noto"}
        assert row["answer"] not in {one["answer"] for one in row["demonstrations"]}


def test_only_the_demonstrations_say_which_task_it_is(folder: Path) -> None:
    kinds = Counter()
    for row in rows(folder, "which-task"):
        kind = row["question_type"]
        answers = {one["image"]: benchmarks._answers(ABOUT[one["image"]]) for one in (row, *row["demonstrations"])}
        assert all(one["answer"] == answers[one["image"]][kind] for one in (row, *row["demonstrations"]))
        assert len({text.lower() for text in answers[row["image"]].values()}) == 7
        assert row["image"] not in {one["image"] for one in row["demonstrations"]}
        kinds[kind] += 1
    assert set(kinds.values()) == {3}


def test_the_same_files_for_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    again, other = benchmarks.write(tmp_path / "a", 21), benchmarks.write(tmp_path / "b", 21, seed=1)
    for name in ("words-2way", "words-5way", "naming", "which-task"):
        assert rows(again, name) == rows(folder, name) != rows(other, name)
    with pytest.raises(ValueError, match="give another folder"):
        benchmarks.write(tmp_path / "a", 20)
    with pytest.raises(ValueError, match="expected 1 or more"):
        benchmarks.write(tmp_path / "c", 0)
