"""What was answered, how often that was right, and `results.json`."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from flamboyance.demo.tasks import Example, Task
from flamboyance.files import write_json

FILE = "results.json"


@dataclass(frozen=True)
class Reply:
    """What a model said after some demonstrations; `probability` of a chosen candidate among the candidates."""

    said: str
    right: bool
    probability: float | None = None


@dataclass(frozen=True)
class AnsweredQuery:
    """A query with the reply at each number of shots."""

    example: Example
    replies: dict[int, Reply]


@dataclass(frozen=True)
class AnsweredSet:
    """Demonstrations and the answered queries after them."""

    demonstrations: list[Example]
    queries: list[AnsweredQuery]
    candidates: list[str] | None


@dataclass(frozen=True)
class Cell:
    """One figure of the table: `right` of `total` queries."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(self.right, self.total)


@dataclass(frozen=True)
class AnsweredTask:
    """A task and its answered sets."""

    task: Task
    sets: list[AnsweredSet]

    def cell(self, shots: int) -> Cell:
        """The accuracy at a number of shots."""
        replies = [query.replies[shots] for part in self.sets for query in part.queries]
        return Cell(sum(reply.right for reply in replies), len(replies))


@dataclass(frozen=True)
class Results:
    """All that a run found.

    Attributes:
        model: its name. parameters, trained: how many it has; how many of them are Flamingo's own.
        shots: the numbers of demonstrations tried.
        seconds: to draw, write and answer everything.
    """

    model: str
    parameters: int
    trained: int
    shots: tuple[int, ...]
    seed: int
    tasks: list[AnsweredTask]
    seconds: float

    def save(self, folder: Path) -> None:
        """Writes `results.json`: the table, and every query with its replies."""
        data = {
            "model": self.model,
            "parameters": self.parameters,
            "trained": self.trained,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "table": [
                {
                    "task": task.task.name,
                    "shots": shots,
                    "right": task.cell(shots).right,
                    "total": task.cell(shots).total,
                    "accuracy": task.cell(shots).accuracy,
                    "interval": task.cell(shots).interval,
                }
                for task in self.tasks
                for shots in self.shots
            ],
            "tasks": [
                {"name": task.task.name, "template": task.task.template.pattern, "sets": [asdict(s) for s in task.sets]}
                for task in self.tasks
            ],
        }
        write_json(folder / FILE, data)


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share, at 95 % by default."""
    share, slack = right / total, z * z / total
    spread = z * math.sqrt(share * (1 - share) / total + slack / (4 * total))
    low, high = ((share + slack / 2 + sign * spread) / (1 + slack) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)
