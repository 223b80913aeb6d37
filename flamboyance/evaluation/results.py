"""Writes a results directory: predictions as they are made, scores when a cell is complete.

run.json                                the model, the settings and the versions
<task>/<shots>-<mode>-<seed>/           a cell; <shots>-<mode>-<seed>-<change>/ with changed demonstrations
    predictions.jsonl                   an object per query; predictions-<rank>.jsonl while the cell is unfinished
    score.json                          the metric's value; a cell that has this file is finished
    test_server.json                    for tasks whose answers a test server measures
scores.json                             finished cells with unchanged demonstrations: mean and deviation over seeds
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from flamboyance.evaluation import data_folders
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.task import Example, Prediction, Score, Task
from flamboyance.files import naming, replacing, size_of

MOST_LABELS = 20  # up to this number the scores of all labels are written; of more labels, those of the best
BEST = 5

# What run.json did not tell in earlier versions; and the tower's features, which not every command needs.
NOT_ALWAYS = ("prompt", "images", "preprocessing", "tokenizer", "chat_template", "features")

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One evaluation of a task: a number of demonstrations, a way of choosing them, and a seed.

    Attributes:
        change: what is changed in the demonstrations, or "baseline" for answers without a model; see changes.py and
            baselines.py. "" for neither.
    """

    task: str
    shots: int
    mode: str
    seed: int
    change: str = ""

    def __str__(self) -> str:
        changed = f", {self.change.replace('_', ' ')}" if self.change else ""
        return f"{self.task}, {self.shots} shots, {self.mode}{changed}, seed {self.seed}"

    def folder(self, output: Path) -> Path:
        changed = f"-{self.change}" if self.change else ""
        return output / self.task / f"{self.shots}-{self.mode}-{self.seed}{changed}"


def row(prompt: Prompt, generated: str | None, answer: str, scores: Sequence[float] | None, labels_by: str = "") -> Row:
    """The line of predictions.jsonl for one query.

    Args:
        labels_by: how a label was chosen, if not by the log-probability of each.
    """
    by_label = None if scores is None else dict(zip(prompt.task.labels or (), scores, strict=True))
    total = {}  # of all labels, where few are written: it makes probabilities of their scores
    if by_label is not None and len(by_label) > MOST_LABELS:
        total = {"scores_total": _log_sum_exp(list(by_label.values()))}
        by_label = dict(sorted(by_label.items(), key=lambda pair: -pair[1])[:BEST])
    query = prompt.query
    return {
        "id": query.id,
        **_images(query.images),
        "asked": list(query.asked),
        "prompt": prompt.text,
        "demonstrations": [
            {
                "id": one.id,
                **_images(() if prompt.blind else one.images),
                "asked": list(one.asked),
                "answer": one.answer,
            }
            for one in prompt.demonstrations
        ],
        "generated": generated,
        **({"cut_off": cut} if (cut := getattr(generated, "cut_off", None)) is not None else {}),
        "answer": answer,
        "scores": by_label,
        **total,
        **({"labels_by": labels_by} if labels_by else {}),
        "references": list(query.references),
        **({"kinds": dict(query.kinds)} if query.kinds else {}),
        "score": None,
        "dropped": prompt.dropped,
    }


def _log_sum_exp(scores: Sequence[float]) -> float:
    most = max(scores)
    return most + math.log(math.fsum(math.exp(score - most) for score in scores)) if math.isfinite(most) else most


def _images(images: Sequence[Path]) -> Row:
    """`image`: the first; `images`: all, if there are several; `image_bytes`: the sizes of their files."""
    paths = [str(image.absolute()) for image in images]
    return {
        "image": paths[0] if paths else None,
        **({"images": paths} if len(paths) > 1 else {}),
        **({"image_bytes": [size_of(path) for path in paths]} if paths else {}),
    }


def prediction(row: Row, task: Task) -> Prediction:
    """A row as a metric takes it."""
    scores = row["scores"]
    complete = scores is not None and task.labels is not None and set(scores) == set(task.labels)
    return Prediction(row["answer"], tuple(scores[label] for label in task.labels or ()) if complete else None)


class Rows:
    """The predictions of an unfinished cell. Each process appends to its own file."""

    def __init__(self, folder: Path, rank: int):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file: TextIO | None = None
        self._path = folder / f"predictions-{rank}.jsonl"
        if self._path.exists():  # cuts off a line that a killed process left incomplete
            written = self._path.read_bytes()
            whole = written[: written.rfind(b"\n") + 1]
            if whole != written:
                with replacing(self._path) as part:
                    Path(part).write_bytes(whole)

    def ids(self) -> set[str]:
        """The ids of the rows of all processes."""
        return {row["id"] for file in self.folder.glob("predictions*.jsonl") for row in each_row(file)}

    def append(self, rows: Iterable[Row]) -> None:
        """Writes rows and flushes them to the file."""
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        with naming(self._path):
            for one in rows:
                self._file.write(_json_line(one))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with naming(self._path):  # writes what could not be written to a full disk
                file.close()


def each_row(file: Path) -> Iterator[Row]:
    """The complete lines of a file of predictions, one at a time.

    Raises:
        ValueError: a line is not a prediction. The message names the file and the line.
    """
    for _, row in _rows_with_offsets(file):
        yield row


def _rows_with_offsets(file: Path) -> Iterator[tuple[int, Row]]:
    """As `each_row`, with the offset of each line in the file."""
    # Lines of bytes end at line feeds only; a text of JSON may hold other characters that Python takes for line ends.
    begin, end = 0, 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            begin, end = end, end + len(line)
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{file}, line {number} is not JSON ({error}); delete the line to ask the query again"
                ) from None
            if problem := _problem(row):
                raise ValueError(
                    f"{file}, line {number} is not a prediction: {problem}; delete the line to ask the query again"
                )
            yield begin, row


def _problem(row: object) -> str | None:
    """Why a value is not a prediction; None if it is one."""
    if not isinstance(row, dict):
        return "expected an object"
    for name, types in _TYPES.items():
        if name not in row and name in ("id", "answer", "scores"):
            return f"it has no {name!r}"
        if not isinstance(row.get(name, types[0]()), types):
            return f"{name!r} is a JSON {type(row[name]).__name__}"
    for one in (row, *row.get("demonstrations", ())):
        if not isinstance(one, dict):
            return "a demonstration is not an object"
        for name in ("asked", "references", "images"):
            if not isinstance(texts := one.get(name, []), list) or not all(isinstance(text, str) for text in texts):
                return f"{name!r} is not a list of texts"
    return None


_NUMBER, _NOTHING = (float, int), type(None)
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,), "image": (str, _NOTHING), "image_bytes": (list,), "prompt": (str,),
    "demonstrations": (list,), "generated": (str, _NOTHING),
    "labels_by": (str,), "kinds": (dict,), "answer": (str, _NOTHING),
    "scores": (dict, _NOTHING), "scores_total": _NUMBER, "score": (*_NUMBER, _NOTHING), "dropped": _NUMBER,
}  # fmt: skip


def read_object(file: Path) -> Row:
    """The object in a JSON file.

    Raises:
        ValueError: the file holds something else. The message names it.
    """
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}; remove it, and evaluate again into the same folder") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: expected an object; remove it, and evaluate again into the same folder")
    return content


def finite(value: object) -> float | None:
    """A finite number; None for null, NaN and infinity."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _json_line(content: object, indent: int | None = None) -> str:
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a file's name or a damaged text
        text = json.dumps(content, indent=indent)
    return text + "\n"


def read_rows(file: Path) -> list[Row]:
    """All rows of a file; raises as `each_row`."""
    return list(each_row(file))


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Writes a file of predictions anew, whole or not at all."""
    with replacing(file) as part, open(part, "w", encoding="utf-8") as written:
        written.writelines(map(_json_line, rows))


def finish(cell: Cell, output: Path, task: Task, seconds: dict[str, float]) -> Row:
    """Finishes a cell: sorts its predictions by query, measures them, and writes both. Returns score.json's content.

    Raises:
        ValueError: predictions are missing, or belong to other queries.
    """
    folder = cell.folder(output)
    # A row takes some 10 kB, with its prompt and demonstrations. Only its offset and its answer are kept in memory.
    places: dict[str, tuple[Path, int]] = {}
    answers: dict[str, Prediction] = {}
    for file in sorted(folder.glob("predictions*.jsonl")):
        for begin, found in _rows_with_offsets(file):
            places[found["id"]], answers[found["id"]] = (file, begin), prediction(found, task)
    examples = task.queries
    missing = [one.id for one in examples if one.id not in places]
    if missing or len(places) != len(examples):
        raise ValueError(
            f"{folder} holds {len(places)} predictions for {len(examples)} queries"
            + (f"; {len(missing)} are missing, such as {missing[0]!r}" if missing else "")
            + ". It was made from other data: give another output, or remove the folder."
        )
    predictions = [answers[one.id] for one in examples]
    measured = _measured(task, examples, predictions)
    dropped, ways = 0, Counter[str]()
    with (
        replacing(folder / "predictions.jsonl") as part,
        open(part, "w", encoding="utf-8") as written,
        ExitStack() as opened,
    ):
        files = {file: opened.enter_context(file.open("rb")) for file, _ in places.values()}
        for example in examples:
            file, begin = places[example.id]
            files[file].seek(begin)
            found = json.loads(files[file].readline())
            found["score"] = None if measured is None else measured.items.get(example.id)
            dropped += found["dropped"]
            ways.update([found["labels_by"]] if found.get("labels_by") else [])
            written.write(_json_line(found))
    if task.test_server is not None:
        _write(folder / "test_server.json", task.test_server(examples, predictions))
    score = {
        "task": cell.task,
        "metric": task.metric.name,
        **({"variant": task.metric.variant} if task.metric.variant else {}),
        "shots": cell.shots,
        "mode": cell.mode,
        "seed": cell.seed,
        **({"change": cell.change} if cell.change else {}),
        "value": None if measured is None else finite(measured.value),
        "interval": None if measured is None else _ends(measured.interval),
        "queries": len(examples),
        "dropped": dropped,
        **({"labels_by": dict(ways)} if ways else {}),
        "seconds": seconds,
    }
    _write(folder / "score.json", score)
    for part in folder.glob("predictions-*.jsonl"):
        part.unlink()
    return score


def _ends(interval: tuple[float, float]) -> list[float] | None:
    """The interval for JSON; None if no resample had a value."""
    low, high = map(finite, interval)
    return None if low is None or high is None else [low, high]


def _measured(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Score | None:
    """The score; None for a test split, which has no references."""
    if not any(one.references for one in examples):
        return None
    return task.metric.measure(examples, predictions)


def summary(output: Path) -> Row:
    """Mean and standard deviation over seeds (of the population, as in the papers' code) of all finished cells of a
    directory. Also writes them to scores.json."""
    found: Row = {}
    for file in sorted(output.glob("*/*/score.json")):
        score = read_object(file)
        if missing := {"task", "mode", "shots", "seed"} - score.keys():
            raise ValueError(f"{file} is damaged: it has no {min(missing)!r}; remove it to have it made again")
        if not score.get("change") and (value := finite(score.get("value"))) is not None:
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
                shots["mean"], shots["std"] = over_seeds(list(shots["seeds"].values()))
    _write(output / "scores.json", found)
    return found


def over_seeds(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation, of the population as in the papers' code.

    Returns:
        None for the mean of no value, and for the deviation of fewer than two.
    """
    return statistics.fmean(values) if values else None, statistics.pstdev(values) if len(values) > 1 else None


def _by_number(pair: tuple[str, object]) -> tuple[int, str]:
    text = pair[0]
    return int(text) if text.lstrip("-").isdecimal() else 0, text


def _write(file: Path, content: object) -> None:
    with replacing(file) as part, open(part, "w", encoding="utf-8") as opened:
        opened.write(_json_line(content, indent=1))


def begin(output: Path, about: Row) -> None:
    """Writes run.json, or resumes the run that the directory holds. A run without an answer is none: its model or
    server was wrong.

    Raises:
        ValueError: that run has another model, protocol or data.
    """
    file = output / "run.json"
    if file.exists():
        try:
            before = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is damaged ({error}): give another --output, or remove {output}") from None
        if not isinstance(before, dict) or not isinstance(before.get("tasks") or {}, dict):
            raise ValueError(f"{file} is damaged (not an object): give another --output, or remove {output}")
        if "data" in about:
            about["data"] = data_folders.sealed([*data_folders.trusted(before), *about["data"]["folders"]])
        for name in ("model", "protocol", "fixed", "tasks"):
            old, new = before.get(name), about[name]
            if name == "tasks":  # more tasks may be added
                old, new = (
                    {k: v for k, v in each.items() if k in new and k in (old or {})} for each in (old or {}, new)
                )
                about["tasks"] = (before.get("tasks") or {}) | about["tasks"]
                for task in old:
                    old[task], new[task] = _told_by_both(old[task], new[task])
            elif isinstance(old, dict) and isinstance(new, dict):
                about[name] = {key: old[key] for key in NOT_ALWAYS if key in old} | new
                old, new = _told_by_both(old, new)
            if old != new and _answered(output):
                raise ValueError(
                    f"{output} holds an evaluation with another {name}: {_difference(old, new)}. Give another "
                    "--output, or the same settings as before, to resume that run"
                )
    output.mkdir(parents=True, exist_ok=True)
    _write(file, about)


def _told_by_both(old: Row, new: Row) -> tuple[Row, Row]:
    """Two descriptions without what only one of them tells, if runs may differ in that."""
    left_out = {key for key in NOT_ALWAYS if (key in old) != (key in new)}
    old, new = ({key: value for key, value in one.items() if key not in left_out} for one in (old, new))
    return old, new


def _answered(output: Path) -> bool:
    """Whether a directory holds predictions or scores."""
    return any(next(output.glob(f"*/*/{name}"), None) for name in ("predictions*.jsonl", "score.json"))


def _difference(old: object, new: object) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return "; ".join(f"{key}: {_difference(old.get(key), new.get(key))}" for key in keys)
    return f"{old!r} there, {new!r} now"
