"""A run's scores in the layout of lm-eval's results files, which leaderboards and plots read.

lm-eval (github.com/EleutherAI/lm-evaluation-harness) writes a file per model and call, in which a task has one number
of shots. So there is a file for each number of shots and way of choosing demonstrations:

    lm_eval/<shots>-<mode>/<model>/results_<date>.json
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from flamboyance.evaluation.metrics.intervals import RESAMPLES
from flamboyance.evaluation.results import Row
from flamboyance.files import write_json
from flamboyance.reports.evaluation_run import EvaluationRun, TableRow

FOLDER = "lm_eval"
Z = statistics.NormalDist().inv_cdf(0.975)  # half of a 95 % interval, in standard errors


def write(run: EvaluationRun, folder: Path) -> list[Path]:
    """Writes the files of a run below `folder`. Returns them."""
    together: dict[tuple[int, str], list[TableRow]] = {}
    for line in run.lines():
        if line.mean is not None:
            together.setdefault((line.shots, line.mode), []).append(line)
    written = []
    for (shots, mode), lines in together.items():
        place = folder / FOLDER / f"{shots}-{mode}" / sanitized(run.model)
        date = re.sub(r"[^\w.-]", "-", str(run.about.get("date") or "undated"))
        place.mkdir(parents=True, exist_ok=True)
        written.append(place / f"results_{date}.json")
        write_json(written[-1], content(run, lines))
    return written


def content(run: EvaluationRun, lines: list[TableRow]) -> dict[str, Any]:
    """What a file holds: lines of one number of shots and way of choosing.

    Scores are shares of 1, as lm-eval's are; CIDEr too is divided by 100. The standard error is that of the 95 %
    interval over queries.
    """
    about = run.about
    settings, versions, model = (_part(about, name) for name in ("settings", "versions", "model"))
    tasks = [line.task for line in lines]
    return {
        "results": {line.task: _result(run, line) for line in lines},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {line.task: _config(run, line) for line in lines},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": {line.task: line.shots for line in lines},
        "higher_is_better": {task: {metric_key(run.metric(task)): True} for task in tasks},
        "n-samples": {
            line.task: {"original": run.asked(line.task) or line.queries[1], "effective": line.queries[1]}
            for line in lines
        },
        "config": {
            "model": "flamboyance",
            "model_args": f"pretrained={run.model}",
            "model_num_parameters": model.get("parameters"),
            "model_dtype": model.get("dtype"),
            "batch_size": settings.get("batch_size"),
            "limit": None,
            "bootstrap_iters": RESAMPLES,
        },
        "git_hash": None,
        "date": about.get("date"),
        "transformers_version": versions.get("transformers"),
        "lm_eval_version": None,
        "flamboyance_version": versions.get("flamboyance"),
        "model_source": "flamboyance",
        "model_name": run.model,
        "model_name_sanitized": sanitized(run.model),
        "chat_template": None,
        "fewshot_as_multiturn": False,
    }


def sanitized(model: str) -> str:
    """A model's name as a folder's, as lm-eval writes it: "org/model" -> "org__model"."""
    return re.sub(r"[^\w.-]+", "__", model).strip("_")


def _part(about: Row, name: str) -> Row:
    found = about.get(name)
    return found if isinstance(found, dict) else {}


def metric_key(name: str) -> str:
    """A metric's name as lm-eval's keys have it: "exact match" -> "exact_match"; top-1 and accuracy are its "acc"."""
    return {"top-1": "acc", "accuracy": "acc"}.get(name, re.sub(r"\W+", "_", name.lower()))


def _result(run: EvaluationRun, line: TableRow) -> dict[str, Any]:
    key = metric_key(run.metric(line.task))
    low, high = line.interval or (None, None)
    error = "N/A" if low is None or high is None else (high - low) / (2 * Z) / 100
    assert line.mean is not None
    found: dict[str, Any] = {"alias": line.task, f"{key},none": line.mean / 100, f"{key}_stderr,none": error}
    return found


def _config(run: EvaluationRun, line: TableRow) -> dict[str, Any]:
    name, variant = run.measure(line.task)
    values = [one.value for one in line.cells if one.value is not None]
    return {
        "task": line.task,
        "num_fewshot": line.shots,
        "output_type": "multiple_choice" if run.labels(line.task) else "generate_until",
        "metric_list": [{"metric": metric_key(name), "aggregation": "mean", "higher_is_better": True}],
        "metadata": {
            "version": 1.0,
            "demonstrations": line.mode,
            "seeds": {str(one.cell.seed): one.value for one in line.cells},
            "std_over_seeds": statistics.pstdev(values) if len(values) > 1 else None,
            "metric_variant": variant or None,
            "protocol": run.about.get("protocol"),
        },
    }
