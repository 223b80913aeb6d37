"""Few-shot tasks that a run is measured on while it trains, by the evaluator of `flamboyance evaluate`."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamboyance.evaluation import run
from flamboyance.evaluation.about import describe
from flamboyance.evaluation.answers.flamingo import FlamingoAnswers
from flamboyance.evaluation.replaced_images import replaced
from flamboyance.evaluation.results import read_object
from flamboyance.evaluation.run import Settings
from flamboyance.evaluation.task import Task
from flamboyance.evaluation.tasks import open_tasks
from flamboyance.processes import World
from flamboyance.training.config import TrainingConfig

FOLDER = "evaluation"  # of the run's directory: a results directory for each evaluated step
SAME = ("model", "protocol", "fixed", "tasks")  # entries of run.json that a resumed evaluation has in common


@dataclass(frozen=True)
class FewShotTasks:
    """The tasks of a run, read and checked.

    Attributes:
        config: has the numbers of shots, the seeds and the number of queries.
    """

    tasks: Sequence[Task]
    config: TrainingConfig

    @classmethod
    def open(cls, config: TrainingConfig) -> FewShotTasks:
        """Reads the tasks of `config.evaluate`.

        Raises:
            ValueError, OSError: a task is unknown, its files are missing or wrong, or it cannot be asked this way.
        """
        tasks = open_tasks(
            config.evaluate, config.evaluate_data, config.evaluate_support or None, called="evaluate_data"
        )
        if without := [task.name for task in tasks if not any(one.references for one in task.queries)]:
            raise ValueError(f"evaluate={without[0]}: its queries have no answers to compare with")
        found = cls(tasks, config)
        found._settings(Path(config.output)).check(tasks)
        return found

    def scores(self, model: Any, processor: Any, step: int, here: World, sharded: bool) -> dict[str, float]:
        """The score of each task by `task@shots`, the mean over seeds, as the metric's unit is printed.

        Each rank answers its part of the queries. The predictions are in `evaluation/step-…` of the run's directory,
        where an evaluation that was stopped resumes if weights and images are the same. A sharded model computes a
        prompt on all ranks together, so every rank then answers every query, the first one for the results.
        """
        folder = Path(self.config.output) / FOLDER / f"step-{step:08d}"
        answers = FlamingoAnswers(model, processor)
        settings = self._settings(folder)
        name = f"{Path(self.config.output).name}, step {step}"
        about = describe(self.tasks, answers, settings, name, ["flamboyance", "train"], {"beams": answers.beams})
        if here.first and (sharded or not _resumes(folder, about) or replaced(folder, self.tasks)):
            shutil.rmtree(folder, ignore_errors=True)
        here.wait()
        alone = sharded and not here.first
        with tempfile.TemporaryDirectory() if alone else nullcontext() as elsewhere:
            settings = self._settings(Path(elsewhere)) if elsewhere else settings
            ranks = World(device=here.device) if sharded else here
            found = run.evaluate(self.tasks, answers, settings, about, ranks=ranks, say=lambda _: None)
        return {
            f"{task}@{shots}": math.nan if one["mean"] is None else one["mean"]
            for task, modes in found.items()
            for shots, one in modes["random"].items()
        }

    def _settings(self, output: Path) -> Settings:
        config = self.config
        return Settings(output, config.evaluate_shots, ("random",), config.evaluate_seeds, config.evaluate_queries)


def _resumes(folder: Path, about: dict[str, Any]) -> bool:
    """Whether a results directory is of this model and these tasks."""
    try:
        before = read_object(folder / "run.json")
    except (OSError, ValueError):
        return False
    return all(before.get(name) == about[name] for name in SAME)
