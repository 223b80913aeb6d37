"""VL-ICL Bench (arXiv:2403.13164): six tasks that cannot be solved without learning from the demonstrations.

The files are those of huggingface.co/datasets/ys-zong/VL-ICL, unpacked: a folder per task with `query.json` and
`support.json`, lists of {"image": [path, …], "question": …, "answer": …} with paths from the benchmark's folder. There
are further keys:

open_mi                           a query's "classes" (made-up names) and "support": {name: {"images": [path, …]}}. A
                                  shot is one image of the query's class and one of another class, which is drawn
clevr, textocr                    none
operator_induction[_interleaved]  a query's "operator", one of + - x; a support example has three answers, one for each
matching_mi                       a support example is {"same": example, "diff": example}, and a shot is both

Demonstrations, prompts, how an answer is read and the comparison with the right one are those of the benchmark's code
(github.com/ys-zong/VL-ICL, without a description of the task, its default): with 0 shots nothing is shown but the
query. Its demonstrations are drawn one query after the other, here for each query by itself, so they are others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from flamboyance.evaluation import metrics
from flamboyance.evaluation.shots import generator_of, shuffled
from flamboyance.evaluation.task import Choose, Example, Task, TaskFile
from flamboyance.evaluation.tasks.official_files import Record, check, listed, some, value
from flamboyance.files import read_json
from flamboyance.templates import IMAGE_TOKEN, Template

MAX_NEW_TOKENS = 15
OPERATORS = ("+", "-", "x")


# ---- answers --------------------------------------------------------------------------------------------------------


def first_sentence(text: str) -> str:
    """An answer up to the end of its first line; of a single line, up to its first period."""
    line, newline, _ = text.strip().partition("\n")
    return line if newline else line.partition(".")[0] or line


def first_number(text: str) -> str:
    """The first digits in a long answer; "" if there are none."""
    found = re.search(r"\d+", first_sentence(text))
    return found.group() if found else ""


def yes_or_no(text: str) -> str:
    """ "yes" if the answer says so anywhere, else "no"."""
    return "yes" if "yes" in first_sentence(text).lower() else "no"


# ---- files ----------------------------------------------------------------------------------------------------------


def _plain(files: Mapping[str, Path], protocol: str, name: str, title: str) -> Task:
    support = [_example(one, place, f"{i}", files) for i, (place, one) in _numbered(files["support"])]
    queries = [_example(one, place, f"{i}", files, True) for i, (place, one) in _numbered(files["queries"])]

    def choose(query: Example, shots: int, seed: int) -> tuple[int, ...]:
        return _drawn(name, len(support), shots, seed, query)

    return _task(name, title, files, support, queries, first_sentence, choose)


def _operators(files: Mapping[str, Path], protocol: str, name: str, title: str) -> Task:
    """Each support example becomes three, with the answer of one operator each."""
    support: list[Example] = []
    for i, (place, one) in _numbered(files["support"]):
        answers = value(one, "answer", list, place)
        if len(answers) != len(OPERATORS):
            raise ValueError(f"{place}: answer has {len(answers)} numbers; expected three, of + - and x")
        for operator, answer in zip(OPERATORS, answers, strict=True):
            support.append(_example(one | {"answer": answer}, place, f"{i}{operator}", files))
    queries, operator_of = [], dict[str, int]()
    for i, (place, one) in _numbered(files["queries"]):
        operator = value(one, "operator", str, place)
        if operator not in OPERATORS:
            raise ValueError(f"{place}: operator is {operator!r}; expected one of {' '.join(OPERATORS)}")
        operator_of[f"{i}"] = OPERATORS.index(operator)
        queries.append(_example(one, place, f"{i}", files, True))

    def choose(query: Example, shots: int, seed: int) -> tuple[int, ...]:
        drawn = _drawn(name, len(support) // len(OPERATORS), shots, seed, query)
        return tuple(len(OPERATORS) * i + operator_of[query.id] for i in drawn)

    return _task(name, title, files, support, queries, first_number, choose)


def _open_mi(files: Mapping[str, Path], protocol: str, name: str, title: str) -> Task:
    support: list[Example] = []
    queries: list[Example] = []
    places = dict[str, dict[str, list[int]]]()  # query -> class -> its examples in the support set
    for i, (place, one) in _numbered(files["queries"]):
        query = _example(one, place, f"{i}", files, True)
        shown = value(one, "support", dict, place)
        classes = [str(each) for each in value(one, "classes", list, place)]
        if query.answer not in classes or len(classes) < 2 or not set(classes) <= set(shown):
            raise ValueError(f"{place}: classes are {', '.join(classes)}; expected the answer and others, with support")
        queries.append(query)
        places[query.id] = {}
        for label in classes:
            images = value(value(shown, label, dict, f"{place}, support"), "images", list, f"{place}, support {label}")
            places[query.id][label] = [*range(len(support), len(support) + len(images))]
            for number, image in enumerate(images):
                told = {"image": image, "question": one["question"], "answer": label}
                support.append(_example(told, place, f"{i}-{label}-{number}", files))

    def choose(query: Example, shots: int, seed: int) -> tuple[int, ...]:
        mine, generator = places[query.id], generator_of(name, seed, query.id)
        others = [label for label in mine if label != query.answer]
        pair = [query.answer, others[int(generator.random() * len(others))]]
        pair = pair if generator.random() < 0.5 else pair[::-1]
        fewest = min(len(mine[label]) for label in pair)
        _check_shots(name, shots, fewest, "images of each of two classes", query)
        return tuple(mine[label][i] for i in range(shots) for label in pair)

    return _task(name, title, files, support, queries, first_sentence, choose)


def _matching_mi(files: Mapping[str, Path], protocol: str, name: str, title: str) -> Task:
    support = [
        _example(value(one, kind, dict, place), f"{place}, {kind}", f"{i}-{kind}", files)
        for i, (place, one) in _numbered(files["support"])
        for kind in ("same", "diff")
    ]
    queries = [_example(one, place, f"{i}", files, True) for i, (place, one) in _numbered(files["queries"])]

    def choose(query: Example, shots: int, seed: int) -> tuple[int, ...]:
        drawn = _drawn(name, len(support) // 2, shots, seed, query)
        return tuple(2 * i + half for i in drawn for half in (0, 1))

    return _task(name, title, files, support, queries, yes_or_no, choose)


def _numbered(file: Path) -> Any:
    return enumerate(listed(read_json(file), file))


def _example(record: Record, place: str, key: str, files: Mapping[str, Path], asked: bool = False) -> Example:
    """The example of a record; queries have their answer as a reference too."""
    paths = value(record, "image", (list, str), place)
    paths = [paths] if isinstance(paths, str) else paths
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"{place}: image is {paths!r}; expected a list of paths")
    first, *further = (_image(path, files["queries"].parent, place) for path in paths)
    answer = str(value(record, "answer", (str, int), place))
    question = value(record, "question", str, place)
    return Example(key, first, answer, (question,), (answer,) if asked else (), tuple(further))


def _image(path: str, folder: Path, place: str) -> Path:
    """The file of a path from the benchmark's folder, which holds the task's; or from the task's own."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{place}: image is {path!r}; expected a path below the benchmark's folder")
    return folder.parent / parts if parts.parts[0] == folder.name else folder / parts


def _task(
    name: str,
    title: str,
    files: Mapping[str, Path],
    support: Sequence[Example],
    queries: Sequence[Example],
    post_process: Callable[[str], str],
    choose: Choose,
) -> Task:
    numbers = {len(one.images) for one in (*support, *queries)}
    if len(numbers) > 1:
        counts = ", ".join(map(str, sorted(numbers)))
        raise ValueError(f"{files['queries']}: examples have {counts} images; expected the same number in all")
    template = Template(IMAGE_TOKEN * max(numbers, default=1) + "{question}\nAnswer: {answer}")
    check(queries, template, files["queries"], "query", solved=False)
    check(support, template, files.get("support", files["queries"]), "support", solved=True)
    return Task(
        name, title, template, support, queries, metrics.CASELESS_MATCH, max_new_tokens=MAX_NEW_TOKENS,
        post_process=post_process, choose=choose,
    )  # fmt: skip


# ---- demonstrations -------------------------------------------------------------------------------------------------


def _drawn(name: str, size: int, shots: int, seed: int, query: Example) -> tuple[int, ...]:
    """So many of the numbers below `size`; more shots add to fewer."""
    _check_shots(name, shots, size, "examples to draw from", query)
    return tuple(islice(shuffled(generator_of(name, seed, query.id), size), shots))


def _check_shots(name: str, shots: int, most: int, what: str, query: Example) -> None:
    if shots > most:
        raise ValueError(f"{name}, query {query.id!r} has {some([str(most)])} {what}, and {shots} shots were requested")


def _file(name: str, title: str, load: Callable[..., Task], about: str, support: bool = True) -> TaskFile:
    files = {"queries": "query.json", **({"support": "support.json"} if support else {})}
    return TaskFile(name, title, files, lambda given, protocol: load(given, protocol, name, title), about)


TASKS = (
    _file("open_mi", "Fast Open-Ended MiniImageNet", _open_mi, "made-up names of classes", support=False),
    _file("clevr", "CLEVR Count Induction", _plain, "how many things fit a question that does not ask for a number"),
    _file("operator_induction", "Operator Induction", _operators, "an operation between two digits in one image"),
    _file("operator_induction_interleaved", "Interleaved Operator Induction", _operators, "the same, in two images"),
    _file("textocr", "TextOCR", _plain, "the text in a red box"),
    _file("matching_mi", "Fast Matching MiniImageNet", _matching_mi, "whether two images are of one class"),
)
