"""Changes of a prompt's demonstrations, each of which takes one part of them away (`evaluate --ablate`).

no_images          their images are removed, as with 0 shots
blank_images       their images are replaced by grey ones of the same size
shuffled_images    their images change places among them
other_images       their images are replaced by images of the support set that the prompt does not show
shuffled_answers   their answers change places among them
random_answers     their answers are drawn: a label of the task, or the answer of any example of the support set
no_questions       their questions are empty, for tasks that have questions
order_1, order_2…  they change places as a whole (`evaluate --orders`), each time another way

Places are drawn evenly from all orders, the given one among them. So a model that copies the answer of the right
demonstration is right by chance afterwards, not wrong for sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from PIL import Image

from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.shots import generator_of, permutations, shuffled
from flamboyance.evaluation.task import Example, Task
from flamboyance.files import replacing
from flamboyance.images import load_image
from flamboyance.videos import find_video

GREY = (128, 128, 128)
ORDER = "order_"
IMAGES = ("no_images", "blank_images", "shuffled_images", "other_images")
ANSWERS = ("shuffled_answers", "random_answers")
TITLES = {
    "no_images": "images removed",
    "blank_images": "images blanked",
    "shuffled_images": "images shuffled",
    "other_images": "images of others",
    "shuffled_answers": "answers shuffled",
    "random_answers": "answers random",
    "no_questions": "questions removed",
}


def of_task(task: Task, shown: int) -> list[str]:
    """The changes that make a difference to a task's prompts with so many demonstrations.

    One demonstration cannot change places, and a support set that is shown whole has no other images.
    """
    left_out = set() if len(task.template.fields) > 1 else {"no_questions"}
    if shown < 2:
        left_out |= {"shuffled_images", "shuffled_answers"}
    images = {one.images for one in task.support}
    if len(images) - (not images.isdisjoint(one.images for one in task.queries)) <= shown:
        left_out.add("other_images")
    return [change for change in TITLES if change not in left_out]


def changed(prompt: Prompt, change: str, seed: int, folder: Path) -> Prompt:
    """The prompt with changed demonstrations.

    What is drawn depends on the change, the seed and the query's id alone.

    Args:
        change: one of `TITLES`, or `order_` and a number. Where there are fewer orders, the last one is taken again.
        folder: where grey images are written.

    Raises:
        ValueError: there is no such change, or the support set has no image besides those that the prompt shows.
    """
    draws = shuffled_by(change, seed, prompt.query.id)
    shown = prompt.demonstrations
    if change.startswith(ORDER):
        number = int(change.removeprefix(ORDER))
        others = permutations(len(shown), number + 1, seed, prompt.query.id)  # the given one first
        return prompt.in_order(others[min(number, len(others) - 1)])
    if change == "no_images":
        return replace(prompt, blind=True)
    if change == "blank_images":
        images = [tuple(blank(image, folder) for image in one.images) for one in shown]
    elif change == "shuffled_images":
        images = [shown[i].images for i in draws(len(shown))]
    elif change == "other_images":
        images = _others(prompt, draws)
    elif change in ANSWERS or change == "no_questions":
        return replace(prompt, demonstrations=tuple(_texts(prompt, change, draws)))
    else:
        raise ValueError(f"change={change!r}: expected one of {', '.join(TITLES)}")
    return replace(prompt, demonstrations=tuple(one.showing(i) for one, i in zip(shown, images, strict=True)))


def shuffled_by(*key: object) -> Callable[[int], Iterator[int]]:
    """A function that gives the numbers below n in an order that depends on the key alone."""
    generator = generator_of(*key)
    return lambda n: shuffled(generator, n)


def _others(prompt: Prompt, draws: Callable[[int], Iterator[int]]) -> list[tuple[Path, ...]]:
    support, taken = prompt.task.support, {prompt.query.images, *(one.images for one in prompt.demonstrations)}
    found: list[tuple[Path, ...]] = []
    for i in draws(len(support)):
        if len(found) == len(prompt.demonstrations):
            break
        if support[i].images not in taken:
            found.append(support[i].images)
            taken.add(support[i].images)
    if not found and prompt.demonstrations:
        raise ValueError(
            f"{prompt.task.name}, query {prompt.query.id!r}: --ablate swaps images for unrelated ones, and the support "
            f"set has none besides the {len(prompt.demonstrations)} that are shown; give more examples, or fewer shots"
        )
    return [found[i % len(found)] for i in range(len(prompt.demonstrations))]  # a small support set repeats some


def _texts(prompt: Prompt, change: str, draws: Callable[[int], Iterator[int]]) -> list[Example]:
    shown, task = prompt.demonstrations, prompt.task
    if change == "no_questions":
        return [replace(one, asked=("",) * len(one.asked)) for one in shown]
    if change == "shuffled_answers":
        return [replace(one, answer=shown[i].answer) for one, i in zip(shown, draws(len(shown)), strict=True)]
    if task.labels is not None:
        return [replace(one, answer=task.labels[next(draws(len(task.labels)))]) for one in shown]
    return [replace(one, answer=task.support[next(draws(len(task.support)))].answer) for one in shown]


def blank(image: Path, folder: Path) -> Path:
    """A grey image of the same size as another, so that a model gives it equally many tokens; also for a video."""
    width, height = _size(image)
    file = folder / f"{width}x{height}.png"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            Image.new("RGB", (width, height), GREY).save(part, "PNG")
    return file


@cache
def _size(image: Path) -> tuple[int, int]:
    video = find_video(image)
    return (load_image(image) if video is None else video.middle()).size
