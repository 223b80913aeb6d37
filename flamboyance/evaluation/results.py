"""A run's directory: predictions as they are made, scores when a cell is complete.

run.json                                what was asked of which model, with which versions
<task>/<shots>-<mode>-<seed>/           a cell
    predictions.jsonl                   an object a query; while the cell is being made predictions-<rank>.jsonl
    score.json                          the metric's value; a cell that has it is done
    test_server.json                    for tasks whose answers are measured elsewhere
scores.json                             all cells: mean and deviation over seeds
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from flamboyance.evaluation import data_folders
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.task import Prediction, Score, Task
from flamboyance.files import naming, replacing

MOST_LABELS = 20  # of which all probabilities are written; of more labels, the likeliest
LIKELIEST = 5

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One number of a table: a task, asked with so many demonstrations, chosen in one way from one seed."""

    task: str
    shots: int
    mode: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}, {self.shots} shots, {self.mode}, seed {self.seed}"

    def folder(self, output: Path) -> Path:
        return output / self.task / f"{self.shots}-{self.mode}-{self.seed}"


def row(prompt: Prompt, generated: str | None, answer: str, scores: Sequence[float] | None) -> Row:
    """What is written of one query."""
    labels = prompt.task.labels or ()
    found = None if scores is None else dict(zip(labels, scores, strict=True))
    if found is not None and len(found) > MOST_LABELS:
        found = dict(sorted(found.items(), key=lambda pair: -pair[1])[:LIKELIEST])
    query = prompt.query
    return {
        "id": query.id,
        "image": str(query.image.absolute()),
        "asked": list(query.asked),
        "prompt": prompt.text,
        "demonstrations": [
            {
                "id": one.id,
                "image": None if prompt.blind else str(one.image.absolute()),
                "asked": list(one.asked),
                "answer": one.answer,
            }
            for one in prompt.demonstrations
        ],
        "generated": generated,
        "answer": answer,
        "scores": found,
        "references": list(query.references),
        "score": None,
        "dropped": prompt.dropped,
    }


def prediction(found: Row, task: Task) -> Prediction:
    """What a metric needs of a row."""
    scores = found["scores"]
    complete = scores is not None and task.labels is not None and set(scores) == set(task.labels)
    return Prediction(found["answer"], tuple(scores[label] for label in task.labels or ()) if complete else None)


class Rows:
    """A cell's predictions while they are made: every process appends to a file of its own."""

    def __init__(self, folder: Path, rank: int):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file: TextIO | None = None
        self._path = folder / f"predictions-{rank}.jsonl"
        if self._path.exists():  # a line that a killed process left unfinished
            written = self._path.read_bytes()
            whole = written[: written.rfind(b"\n") + 1]
            if whole != written:
                with replacing(self._path) as part:
                    Path(part).write_bytes(whole)

    def ids(self) -> set[str]:
        """Those of the rows of all processes."""
        return {found["id"] for file in self.folder.glob("predictions*.jsonl") for found in each_row(file)}

    def append(self, rows: Iterable[Row]) -> None:
        """Writes rows, and lets them reach the file."""
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        with naming(self._path):
            for one in rows:
                self._file.write(_json_line(one))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with naming(self._path):  # writes what an append on a full disk has left
                file.close()


def each_row(file: Path) -> Iterator[Row]:
    """The complete lines of a file of predictions, one after the other.

    Raises:
        ValueError: a line is not a prediction; names file and line.
    """
    for _, found in _placed_rows(file):
        yield found


def _placed_rows(file: Path) -> Iterator[tuple[int, Row]]:
    """As `each_row`, with where in the file each line begins."""
    # Binary lines end at line feeds alone: JSON may hold other characters that Python takes for the end of a line.
    begin, end = 0, 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            begin, end = end, end + len(line)
            if not line.endswith(b"\n"):
                return
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{file}, line {number} is not JSON ({error}); delete it to have it made again"
                ) from None
            if wrong := _wrong(found):
                raise ValueError(
                    f"{file}, line {number} is no prediction: {wrong}; delete that line to have it made again"
                )
            yield begin, found


def _wrong(row: Any) -> str | None:
    """What keeps a value from being a prediction."""
    if not isinstance(row, dict):
        return "expected an object"
    for name, types in _TYPES.items():
        if name not in row and name in ("id", "answer", "scores"):
            return f"it has no {name!r}"
        if not isinstance(row.get(name, types[0]()), types):
            return f"{name!r} is a JSON {type(row[name]).__name__}"
    for one in (row, *row.get("demonstrations", ())):
        if not isinstance(one, dict):
            return "a demonstration is no object"
        for name in ("asked", "references"):
            if not isinstance(texts := one.get(name, []), list) or not all(isinstance(text, str) for text in texts):
                return f"{name!r} is no list of texts"
    return None


_NUMBER, _NOTHING = (float, int), type(None)
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,), "image": (str, _NOTHING), "prompt": (str,), "demonstrations": (list,), "generated": (str, _NOTHING),
    "answer": (str, _NOTHING), "scores": (dict, _NOTHING), "score": (*_NUMBER, _NOTHING), "dropped": _NUMBER,
}  # fmt: skip


def read_object(file: Path) -> Row:
    """The object that a JSON file holds.

    Raises:
        ValueError: it holds something else; names it.
    """
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}; remove it, and evaluate again into the same folder") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: expected an object; remove it, and evaluate again into the same folder")
    return found


def finite(value: Any) -> float | None:
    """A finite number; None for null, NaN and infinity."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _json_line(content: Any, indent: int | None = None) -> str:
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, of a file's name or of a damaged text
        text = json.dumps(content, indent=indent)
    return text + "\n"


def read_rows(file: Path) -> list[Row]:
    """All of them; errors as `each_row`."""
    return list(each_row(file))


def finish(cell: Cell, output: Path, task: Task, seconds: dict[str, float]) -> Row:
    """Puts a cell's predictions in order, measures them, and writes both. Returns score.json's content.

    Raises:
        ValueError: predictions are missing, or there are some of other queries.
    """
    folder = cell.folder(output)
    # Prompts with their demonstrations take some 10 kB a query: what is held of a row is where it is, and its answer.
    places: dict[str, tuple[Path, int]] = {}
    answers: dict[str, Prediction] = {}
    for file in sorted(folder.glob("predictions*.jsonl")):
        for begin, one in _placed_rows(file):
            places[one["id"]], answers[one["id"]] = (file, begin), prediction(one, task)
    examples = task.queries
    missing = [one.id for one in examples if one.id not in places]
    if missing or len(places) != len(examples):
        raise ValueError(
            f"{folder} holds {len(places)} predictions for {len(examples)} queries"
            + (f"; {len(missing)} are missing, such as {missing[0]!r}" if missing else "")
            + ". It was made from other data; give another output, or remove the folder."
        )
    predictions = [answers[one.id] for one in examples]
    measured = _measured(task, examples, predictions)
    dropped = 0
    with (
        replacing(folder / "predictions.jsonl") as part,
        open(part, "w", encoding="utf-8") as written,
        ExitStack() as opened,
    ):
        files = {file: opened.enter_context(file.open("rb")) for file, _ in places.values()}
        for example in examples:
            file, begin = places[example.id]
            files[file].seek(begin)
            one = json.loads(files[file].readline())
            one["score"] = None if measured is None else measured.items.get(example.id)
            dropped += one["dropped"]
            written.write(_json_line(one))
    if task.test_server is not None:
        _write(folder / "test_server.json", task.test_server(examples, predictions))
    score = {
        "task": cell.task,
        "metric": task.metric.name,
        **({"variant": task.metric.variant} if task.metric.variant else {}),
        "shots": cell.shots,
        "mode": cell.mode,
        "seed": cell.seed,
        "value": None if measured is None else finite(measured.value),
        "interval": None if measured is None else _ends(measured.interval),
        "queries": len(examples),
        "dropped": dropped,
        "seconds": seconds,
    }
    _write(folder / "score.json", score)
    for part in folder.glob("predictions-*.jsonl"):
        part.unlink()
    return score


def _ends(interval: tuple[float, float]) -> list[float] | None:
    """None where no resample had a value."""
    low, high = map(finite, interval)
    return None if low is None or high is None else [low, high]


def _measured(task: Task, examples: Sequence[Any], predictions: Sequence[Prediction]) -> Score | None:
    """None where there is nothing to compare with: a test split, whose answers a server holds."""
    if not any(one.references for one in examples):
        return None
    return task.metric.measure(examples, predictions)


def summary(output: Path) -> Row:
    """Mean and deviation (of the population, as the papers' code has it) over seeds, of all cells that are finished, by
    whichever command; also written to scores.json."""
    found: Row = {}
    for file in sorted(output.glob("*/*/score.json")):
        score = read_object(file)
        if missing := {"task", "mode", "shots", "seed"} - score.keys():
            raise ValueError(f"{file} is damaged: it has no {min(missing)!r}; remove it to have it made again")
        if (value := finite(score.get("value"))) is not None:
            modes = found.setdefault(str(score["task"]), {}).setdefault(str(score["mode"]), {})
            modes.setdefault(str(score["shots"]), {"seeds": {}})["seeds"][str(score["seed"])] = value
    found = {
        task: {mode: dict(sorted(counts.items(), key=_by_number)) for mode, counts in sorted(modes.items())}
        for task, modes in sorted(found.items())
    }
    for modes in found.values():
        for counts in modes.values():
            for shots in counts.values():
                shots["seeds"] = dict(sorted(shots["seeds"].items(), key=_by_number))
                values = list(shots["seeds"].values())
                shots["mean"] = statistics.fmean(values)
                shots["std"] = statistics.pstdev(values) if len(values) > 1 else None
    _write(output / "scores.json", found)
    return found


def _by_number(pair: tuple[str, Any]) -> tuple[int, str]:
    text = pair[0]
    return int(text) if text.lstrip("-").isdecimal() else 0, text


def _write(file: Path, content: Any) -> None:
    with replacing(file) as part, open(part, "w", encoding="utf-8") as opened:
        opened.write(_json_line(content, indent=1))


def begin(output: Path, about: Row) -> None:
    """Writes run.json, or goes on with the run that is there.

    Raises:
        ValueError: that run is of another model, protocol or data.
    """
    file = output / "run.json"
    if file.exists():
        try:
            before = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is damaged ({error}): give another --output, or remove {output}") from None
        if not isinstance(before, dict) or not isinstance(before.get("tasks") or {}, dict):
            raise ValueError(f"{file} is damaged (no object): give another --output, or remove {output}")
        if "data" in about:
            about["data"] = data_folders.sealed([*data_folders.believed(before), *about["data"]["folders"]])
        for name in ("model", "protocol", "fixed", "tasks"):
            old, new = before.get(name), about[name]
            if name == "tasks":  # further tasks may join
                old, new = (
                    {k: v for k, v in each.items() if k in new and k in (old or {})} for each in (old or {}, new)
                )
                about["tasks"] = (before.get("tasks") or {}) | about["tasks"]
            if old != new:
                raise ValueError(
                    f"{output} holds an evaluation with another {name}: {_difference(old, new)}. Give another "
                    "--output, or ask as before: the run is then resumed where it stopped."
                )
    output.mkdir(parents=True, exist_ok=True)
    _write(file, about)


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return "; ".join(f"{key}: {_difference(old.get(key), new.get(key))}" for key in keys)
    return f"{old!r} there, {new!r} now"
