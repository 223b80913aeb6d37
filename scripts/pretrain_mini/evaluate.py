"""Measures flamingo-mini on held-out data through the public interface: 0, 1, 2, 4 and 8 shots, with 95 % intervals.

The scenes (by seed), 360 handwritten scans, and the made-up words are held out. In binding episodes the demonstrations
are held out too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.files import write_json, write_text
from flamboyance.mini.world import scenes as world
from flamboyance.mini.world.sayings import (
    BINDING_KINDS,
    DIGIT_QUESTION,
    Episode,
    binding_episode,
    caption,
    draw_question,
)
from flamboyance.mini.world.scenes import Scene
from scripts.proportion import Proportion

SHOTS = (0, 1, 2, 4, 8)
BATCH = 40
_SEED = 20_000_000  # far from any training step's


@dataclass(frozen=True)
class Row(Proportion):
    """One line of the table: `right` of `total` trials of a task at a number of shots."""

    task: str
    shots: int
    right: int
    total: int


Prompt = tuple[list[tuple[Scene, str]], tuple[Scene, str]]  # solved entries, then the query; texts follow the picture


class Judge:
    """Prompts a model: `answers` generates, `choices` scores candidates."""

    def __init__(self, model: FlamingoForConditionalGeneration, processor: FlamingoProcessor) -> None:
        self.model, self.processor = model, processor

    def _inputs(self, prompts: list[Prompt], pictures: Callable[[Scene], object]) -> dict[str, torch.Tensor]:
        texts = ["".join(f"<image>{text}<|endofchunk|>" for _, text in shown) + f"<image>{query[1]}"
                 for shown, query in prompts]  # fmt: skip
        images = [[*(pictures(scene) for scene, _ in shown), world.picture(query[0])] for shown, query in prompts]
        inputs = self.processor(text=texts, images=images)
        return {key: value.to(self.model.device) for key, value in inputs.items()}

    def answers(self, prompts: list[Prompt], most: int = 24) -> list[str]:
        found = []
        for start in range(0, len(prompts), BATCH):
            inputs = self._inputs(prompts[start : start + BATCH], world.picture)
            output = self.model.generate(**inputs, max_new_tokens=most, num_beams=1, do_sample=False)
            new = output[:, inputs["input_ids"].shape[1] :]
            found += [self.processor.decode(row, skip_special_tokens=True).strip() for row in new]
        return found

    def choices(
        self, prompts: list[Prompt], candidates: list[list[str]], pictures: Callable[[Scene], object] = world.picture
    ) -> list[int]:
        """Index of the likeliest candidate of each prompt."""
        found = []
        for prompt, words in zip(prompts, candidates, strict=True):
            scores = self.model.score(**self._inputs([prompt], pictures), candidates=words)
            found.append(int(scores.argmax()))
        return found


# ---- tasks ----------------------------------------------------------------------------------------------------------


def _rng(*name: int) -> np.random.Generator:
    return np.random.default_rng((_SEED, *name))


def captions(judge: Judge, count: int, shots: int, trials: int) -> Iterable[Row]:
    """Exact captions of scenes with `count` things, and the share of their attributes that is right."""
    rng, prompts = _rng(1, count, shots), []
    for _ in range(trials):
        shown = [world.scene(rng) for _ in range(shots)]
        prompts.append(([(s, "Output:" + caption(s)) for s in shown], (world.scene(rng, count), "Output:")))
    said = judge.answers(prompts)
    truth = [caption(query[0]) for _, query in prompts]
    yield Row(f"caption, {count} object{'s' * (count > 1)}: exact", shots, sum(map(str.__eq__, said, truth)), trials)
    hits = [_attributes(text, query[0]) for text, (_, query) in zip(said, prompts, strict=True)]
    yield Row(f"caption, {count} object{'s' * (count > 1)}: attributes", shots, sum(hits), 3 * count * trials)


def _attributes(text: str, scene: Scene) -> int:
    """Number of the scene's sizes, colors and shapes that the caption has in the right places."""
    said = [part.split()[-3:] for part in text.replace(" and ", ", ").split(", ")]
    said += [[]] * (len(scene.things) - len(said))
    facts = [[thing.size, thing.color, thing.shape] for thing in scene.things]
    return sum(a == b for words, fact in zip(said, facts, strict=False) for a, b in zip(words, fact, strict=False))


def question_answers(judge: Judge, shots: int, trials: int) -> Iterable[Row]:
    """Every kind of question equally often; digits are their own task."""
    rng, prompts, truth, kinds = _rng(2, shots), [], [], []
    wanted = ("color", "shape", "size", "position", "count", "yes-no")
    while len(prompts) < trials:
        entries = []
        for kind in (*rng.permutation(wanted)[:shots], *rng.permutation(wanted)[: max(0, shots - 6)]):
            entries.append(_question(rng, kind))
        kind = wanted[len(prompts) % len(wanted)]
        scene, text, answer = _question(rng, kind)
        prompts.append(([(s, t + a) for s, t, a in entries], (scene, text)))
        truth.append(answer)
        kinds.append(kind)
    right = [a == b for a, b in zip(judge.answers(prompts, 4), truth, strict=True)]
    yield Row("questions: all", shots, sum(right), trials)
    for kind in wanted:
        mine = [hit for hit, k in zip(right, kinds, strict=True) if k == kind]
        yield Row(f"questions: {kind}", shots, sum(mine), len(mine))


def _question(rng: np.random.Generator, kind: str) -> tuple[Scene, str, str]:
    scene, question = draw_question(rng, kind)
    return scene, f"Question:{question.text} Short answer:", question.answer


def digit_reading(judge: Judge, shots: int, trials: int) -> Iterable[Row]:
    """The held-out scans in order (all 360 when `trials` allows), read by a question."""
    rng, prompts, truth = _rng(3, shots), [], []
    text = f"Question:{DIGIT_QUESTION} Short answer:"
    for index in range(min(trials, 360)):
        shown = [world.digit_scene(rng, "train") for _ in range(shots)]
        query = world.digit_picture(index, "test", rng)
        prompts.append(([(s, text + s.digit.value) for s in shown], (query, text)))
        truth.append(query.digit.value)
    said = judge.answers(prompts, 4)
    yield Row("digits, unseen handwriting", shots, sum(map(str.__eq__, said, truth)), len(truth))


def binding(judge: Judge, shots: int, trials: int) -> Iterable[Row]:
    """A choice between two unseen made-up words, and two controls with uninformative demonstrations."""
    plain, shuffled, blanked = [], [], []
    for number, kind in enumerate(BINDING_KINDS):
        rng = _rng(4, number, shots)
        episodes = [binding_episode(rng, shots, kind, "test") for _ in range(trials)]
        plain.append(_binding_row(f"binding: {kind}", judge, episodes, shots))
        if shots >= 2:
            shuffled.append(_binding_row("", judge, _shuffled(episodes, rng), shots))
            blanked.append(_binding_row("", judge, _blanked(episodes), shots))
    yield _pooled("binding: all", plain)
    yield from plain
    if shots >= 2:
        yield _pooled("control: demonstrations' pictures shuffled", shuffled)
        yield _pooled("control: demonstrations' pictures blanked", blanked)


def _pooled(name: str, rows: list[Row]) -> Row:
    return Row(name, rows[0].shots, sum(row.right for row in rows), sum(row.total for row in rows))


def _binding_row(name: str, judge: Judge, episodes: list[Episode], shots: int) -> Row:
    prompts = [([(s, "Output:" + word) for s, word in e.demonstrations], (e.query, "Output:")) for e in episodes]
    chosen = judge.choices(prompts, [e.candidates for e in episodes])
    right = sum(e.candidates[i] == e.answer for i, e in zip(chosen, episodes, strict=True))
    return Row(name, shots, right, len(episodes))


def _shuffled(episodes: list[Episode], rng: np.random.Generator) -> list[Episode]:
    """Shuffles each episode's demonstration images against their words, so that they carry no information."""
    found = []
    for e in episodes:
        order = rng.permutation(len(e.demonstrations))
        shown = [(e.demonstrations[i][0], word) for i, (_, word) in zip(order, e.demonstrations, strict=True)]
        found.append(Episode(e.kind, shown, e.query, e.answer, e.candidates))
    return found


def _blanked(episodes: list[Episode]) -> list[Episode]:
    """Replaces the demonstrations' images by background and noise."""
    return [
        Episode(e.kind, [(Scene((), None, s.ground, s.noise), word) for s, word in e.demonstrations], e.query, e.answer,
                e.candidates)
        for e in episodes
    ]  # fmt: skip


# ---- the table ------------------------------------------------------------------------------------------------------


def glance(model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, trials: int = 50) -> str:
    """A few scores for the training log."""
    judge = Judge(model, processor)
    rows = [*captions(judge, 1, 0, trials), *captions(judge, 3, 0, trials), *question_answers(judge, 0, 2 * trials)]
    rows += digit_reading(judge, 0, trials)
    for number, kind in enumerate(BINDING_KINDS):
        episodes = [binding_episode(_rng(5, number, i), 4, kind, "test") for i in range(trials)]
        rows.append(_binding_row(f"binding {kind}", judge, episodes, 4))
    return "  ".join(f"{row.task} {row.share:.2f}" for row in rows)


def table(model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, trials: int = 200) -> list[Row]:
    """All tasks at all numbers of shots."""
    judge, rows = Judge(model, processor), []
    for shots in SHOTS:
        for count in (1, 2, 3):
            rows += captions(judge, count, shots, trials)
        rows += question_answers(judge, shots, 3 * trials)
        rows += digit_reading(judge, shots, 360)
        rows += binding(judge, shots, trials)
        print(f"[evaluate] {shots} shots done", flush=True)
    return rows


def markdown(rows: list[Row]) -> str:
    """The rows as one table: tasks down, shots across, `share (interval)` in per cent."""
    lines = ["| task | " + " | ".join(f"{s} shots" for s in SHOTS) + " |", "|---|" + "---|" * len(SHOTS)]
    for task in dict.fromkeys(row.task for row in rows):
        cells = []
        for shots in SHOTS:
            row = next((r for r in rows if (r.task, r.shots) == (task, shots)), None)
            low, high = row.interval if row else (0, 0)
            cells.append(f"{100 * row.share:.1f} ({100 * low:.0f}–{100 * high:.0f})" if row else "")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save(rows: list[Row], folder: Path) -> None:
    """Writes table.json and table.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "table.json", [asdict(row) for row in rows])
    write_text(folder / "table.md", markdown(rows) + "\n")
