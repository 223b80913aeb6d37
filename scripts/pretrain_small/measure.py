"""Measures flamingo-small on what was held out: one table of shots, with 95 % intervals, controls and baselines.

    python -m scripts.pretrain_small.measure --model small --world WORLD --output measured.json

WORLD is the folder that `python -m scripts.small_world` writes. Pictures to name come after the most similar pictures
that were trained on, by the tower's features, the most similar last (RICES). A row is a file of WORLD/evaluation, shown
in one way:

- as given;
- shuffled: the demonstrations' images change places, so that no text belongs to its image but by chance;
- blank: the demonstrations' images are gray;
- blind: the query's image is gray too.

In `words-` files and `which-task` the answer is chosen among the row's candidates: the episode's made-up words, or what
the seven tasks say of the query. It is the one with the highest mean log-probability per token, as the papers classify.
`which-task-written` asks the same, and the answer is written freely, as names are.

Beside it are two baselines without a language model. They answer with the class whose demonstrations are most similar
to the query: by the tower's features (the mean over the cells), or by 16 × 16 pixels.

Each row is written to the output file, and to the table beside it, as soon as it is measured. The same command resumes
after the last one.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor, catalog, templates
from flamboyance.evaluation.answers.media_cache import MediaCache
from flamboyance.files import read_json, read_json_lines, write_json, write_text
from flamboyance.images import load_image
from flamboyance.prompting import completion_tokens, generate_texts, prompt_inputs
from flamboyance.templates import Template
from scripts.proportion import Proportion

SHOTS = (0, 1, 2, 4, 8, 16)
SHOTS_OF_FIVE = (0, 5, 10, 20)  # of five classes, each as often as the others
TASK = "which-task"
CHOSEN = ("words-", TASK)  # files whose answer is one of their candidates; the other answers are written freely
WRITTEN = "-written"  # after the name of a file with candidates: the answer is written freely
SUPPORT = "naming-support"  # the file of pictures that are shown with those to name
AS_GIVEN, CONTROLS = "as given", ("shuffled", "blank", "blind")
BY_FEATURES, BY_PIXELS = "nearest by features", "nearest by pixels"
WAYS = (AS_GIVEN, BY_FEATURES, BY_PIXELS, *CONTROLS)
MOST_TOKENS = 12
PIXELS = 16

Shown = Sequence[tuple[Path, str]]


@dataclass(frozen=True)
class Trial:
    """A query with its demonstrations. `candidates` is empty where the answer is written freely. Retrieved
    demonstrations are in the order of their similarity, the most similar last."""

    shown: Shown
    query: Path
    answer: str
    candidates: tuple[str, ...] = ()
    retrieved: bool = False

    def few(self, shots: int) -> Trial:
        """The trial with fewer demonstrations: the first ones, or the most similar ones."""
        first = len(self.shown) - shots if self.retrieved else 0
        return replace(self, shown=self.shown[first : first + shots])


@dataclass(frozen=True)
class Row(Proportion):
    """One line of the table: `right` of `total` trials of a task, shown in one way, at a number of shots."""

    task: str
    way: str
    shots: int
    right: int
    total: int


def trials(world: Path, task: str, most: int) -> list[Trial]:
    """The first trials of a file of episodes, or of images to name."""
    file = task.removesuffix(WRITTEN)
    rows: list[Any] = [row for _, row in read_json_lines(world / "evaluation" / f"{file}.jsonl")]
    if rows and "query" not in rows[0]:
        order = np.random.default_rng(0).permutation(len(rows))[:most]
        return [Trial((), world / rows[i]["image"], rows[i]["text"]) for i in order]
    return [
        Trial(
            [(world / shown["image"], shown["text"]) for shown in row["demonstrations"]],
            world / row["query"]["image"],
            row["answer"],
            tuple(row["candidates"]) if task == file and task.startswith(CHOSEN) else (),
        )
        for row in rows[:most]
    ]


def with_similar(trials: Sequence[Trial], support: Shown, vector: Callable[[Path], np.ndarray]) -> list[Trial]:
    """Trials without demonstrations, with the most similar pictures of the support as theirs."""
    if not trials or not support:
        return list(trials)
    kept = np.stack([unit(vector(image)) for image, _ in track(support, "features of the support")])

    def similar(trial: Trial) -> Trial:
        order = np.argsort(kept @ unit(vector(trial.query)), kind="stable")[-max(SHOTS) :]
        return replace(trial, shown=[support[i] for i in order], retrieved=True)

    return [similar(trial) for trial in trials]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def derangement(length: int, rng: np.random.Generator) -> list[int]:
    """An order in which nothing is at its own place, where there is one."""
    order = rng.permutation(length)
    return [int(order[(place + 1) % length]) for place in np.argsort(order)]


def changed(trial: Trial, way: str, gray: Path, number: int) -> Trial:
    """The trial as a control shows it."""
    images, texts = [image for image, _ in trial.shown], [text for _, text in trial.shown]
    if way == "shuffled":
        images = [images[i] for i in derangement(len(images), np.random.default_rng(number))]
    elif way in ("blank", "blind"):
        images = [gray] * len(images)
    query = gray if way == "blind" else trial.query
    return replace(trial, shown=list(zip(images, texts, strict=True)), query=query)


class Judge:
    """Answers trials with a model. Every image is encoded once."""

    def __init__(
        self,
        model: FlamingoForConditionalGeneration,
        processor: FlamingoProcessor,
        template: Template,
        batch: int = 16,
    ):
        self.model, self.processor, self.template, self.batch = model, processor, template, batch
        self.cache = MediaCache(model, processor)

    def right(self, trials: Sequence[Trial]) -> int:
        """How many of the trials are answered correctly."""
        free = [trial for trial in trials if not trial.candidates]
        chosen = sum(self._choice(trial) == trial.answer for trial in trials if trial.candidates)
        for start in range(0, len(free), self.batch):
            some = free[start : start + self.batch]
            options = {"max_new_tokens": MOST_TOKENS, "num_beams": 1, "do_sample": False}
            said = generate_texts(self.model, self.processor, self._inputs(some), **options)
            chosen += sum(self.template.parse(text) == trial.answer for text, trial in zip(said, some, strict=True))
        return chosen

    def _choice(self, trial: Trial) -> str:
        """The candidate with the highest mean log-probability per token, as the papers and `FewShotTask` choose."""
        query = self.template.query()
        tokens = completion_tokens(self.processor, self.template, query, trial.candidates)
        scores = self.model.score(**self._inputs([trial]), candidates=tokens, normalize="mean")
        return trial.candidates[int(scores.argmax())]

    def _inputs(self, trials: Sequence[Trial]) -> dict[str, Any]:
        media = self.cache.media([[*(image for image, _ in trial.shown), trial.query] for trial in trials])
        texts = [
            "".join(self.template.demonstration(text) for _, text in trial.shown) + self.template.query()
            for trial in trials
        ]
        return prompt_inputs(self.model, self.processor, texts, media)


class Nearest:
    """Answers with the text whose demonstrations are most similar to the query: the mean cosine similarity to each
    text's two nearest."""

    def __init__(self, vector: Callable[[Path], np.ndarray]):
        self._vector = vector

    def right(self, trials: Sequence[Trial]) -> int:
        return sum(self._answer(trial) == trial.answer for trial in trials)

    def _answer(self, trial: Trial) -> str | None:
        near: dict[str, list[float]] = defaultdict(list)
        asked = unit(self._vector(trial.query))
        for image, text in trial.shown:
            near[text].append(float(unit(self._vector(image)) @ asked))
        return max(near, key=lambda text: np.mean(sorted(near[text])[-2:]), default=None)


def pixels(image: Path) -> np.ndarray:
    """(768,) float32, of mean 0."""
    small = np.asarray(load_image(image).resize((PIXELS, PIXELS), Image.Resampling.BOX), np.float32).ravel()
    return small - small.mean()


def tower_features(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor
) -> Callable[[Path], np.ndarray]:
    @torch.no_grad()
    def features(image: Path) -> np.ndarray:
        frames = processor.prepare(image).pixels  # (1, C, H, W)
        return model.vision(frames).mean(1)[0].numpy()

    return features


def measured(
    judges: dict[str, Judge | Nearest],
    given_trials: dict[str, list[Trial]],
    gray: Path,
    done: Sequence[Row],
    only_ways: Sequence[str] = (),
    only_shots: Sequence[int] = (),
) -> Iterator[Row]:
    """The rows of the tasks, except those in `done`: the model's first, then the baselines', then the model's with the
    controls. The judge named "model" is the model's. `only_ways` and `only_shots` leave out all others."""
    known = {(row.task, row.way, row.shots) for row in done}
    ways = {AS_GIVEN: judges["model"]} | {way: judge for way, judge in judges.items() if way != "model"}
    ways |= dict.fromkeys(CONTROLS, judges["model"])
    ways = {way: judge for way, judge in ways.items() if not only_ways or way in only_ways}
    plan = []
    for way, judge in ways.items():
        for task, given in given_trials.items():
            longest = max((len(trial.shown) for trial in given), default=0)
            shots = [n for n in (SHOTS_OF_FIVE if "5way" in task else SHOTS) if n <= longest]
            shots = [n for n in shots if not only_shots or n in only_shots]
            plan += [(task, given, way, n, judge) for n in shots if n or way == AS_GIVEN]
    left = [row for row in plan if (row[0], row[2], row[3]) not in known]
    for task, given, way, n, judge in track(left, "rows"):
        shown = [changed(trial.few(n), way, gray, number) for number, trial in enumerate(given)]
        yield Row(task, way, n, judge.right(shown), len(shown))


def tables(rows: Sequence[Row]) -> str:
    """Markdown: a table for each set of shots that tasks have, with a line per task and way."""
    together: dict[tuple[int, ...], list[Row]] = defaultdict(list)
    for task in dict.fromkeys(row.task for row in rows):
        some = [row for row in rows if row.task == task]
        together[tuple(sorted({row.shots for row in some}))] += some
    return "\n".join(_table(some, shots) for shots, some in together.items())


def _table(rows: Sequence[Row], shots: Sequence[int]) -> str:
    lines = [f"| | | {' | '.join(f'{n} shots' for n in shots)} |", f"|---|---|{'---:|' * len(shots)}"]
    for task, way in dict.fromkeys((row.task, row.way) for row in rows):
        cells = []
        for n in shots:
            found = [row for row in rows if (row.task, row.way, row.shots) == (task, way, n)]
            low, high = found[0].interval if found else (0.0, 0.0)
            cells.append(f"{found[0].share:.0%} ({low:.0%}–{high:.0%})" if found else "")
        lines.append(f"| {task} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a name, or a directory")
    parser.add_argument("--world", type=Path, required=True, help="the folder that scripts.small_world wrote")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file; the table is written beside it")
    parser.add_argument("--tasks", help="comma-separated files of WORLD/evaluation (default: all)")
    parser.add_argument("--trials", type=int, default=200, help="trials per row (default: %(default)s)")
    parser.add_argument("--ways", help='comma-separated, such as "as given,blank" (default: all)')
    parser.add_argument("--shots", help="comma-separated (default: all)")
    parser.add_argument("--template", default=templates.caption.pattern, help="of an image and its text")
    given = parser.parse_args(arguments)
    ways = given.ways.split(",") if given.ways else []
    shots = [int(number) for number in given.shots.split(",")] if given.shots else []
    if unknown := sorted(set(ways) - set(WAYS)):
        parser.error(f"--ways has {unknown[0]!r}; expected some of {', '.join(WAYS)}")
    if unknown := sorted(set(shots) - {*SHOTS, *SHOTS_OF_FIVE}):
        parser.error(f"--shots has {unknown[0]}; expected some of {sorted({*SHOTS, *SHOTS_OF_FIVE})}")
    model, processor = catalog.resolve(given.model).open()
    model.pack()
    files = sorted(file.stem for file in (given.world / "evaluation").glob("*.jsonl"))
    files += [TASK + WRITTEN] if TASK in files else []
    tasks = given.tasks.split(",") if given.tasks else [task for task in files if not task.endswith("support")]
    gray = given.output.with_suffix(".gray.png")
    Image.new("RGB", (128, 128), (128, 128, 128)).save(gray)
    features = cache(tower_features(model, processor))
    judges: dict[str, Judge | Nearest] = {
        "model": Judge(model, processor, Template(given.template)),
        BY_FEATURES: Nearest(features),
        BY_PIXELS: Nearest(cache(pixels)),
    }
    done = [Row(**row) for row in read_json(given.output)["rows"]] if given.output.exists() else []
    chosen = {task: trials(given.world, task, given.trials) for task in tasks}
    if (given.world / "evaluation" / f"{SUPPORT}.jsonl").exists():
        support = [(trial.query, trial.answer) for trial in trials(given.world, SUPPORT, sys.maxsize)]
        named = {task: some for task, some in chosen.items() if some and not some[0].shown}
        chosen |= {task: with_similar(some, support, features) for task, some in named.items()}
    for row in measured(judges, chosen, gray, done, ways, shots):
        done.append(row)
        write_json(given.output, {"model": given.model, "rows": [asdict(row) for row in done]})
        write_text(given.output.with_suffix(".md"), tables(done))
    print(tables(done))


if __name__ == "__main__":
    main()
