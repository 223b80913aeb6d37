"""Trains all variants, each with several seeds, and writes the table and the figure.

    python -m benchmarks.papers_ablations FOLDER [--processes 2] [--variants …] [--seeds 0,1,2]

Makes the world in FOLDER first. Each training takes one core. A finished one is kept in `FOLDER/found`, an unfinished
one goes on from its checkpoint: the same command resumes. `--write` copies what is found into the repository, and takes
what an earlier call copied there as done.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.papers_ablations import data, table
from benchmarks.papers_ablations.variants import VARIANTS
from flamboyance.files import read_json, write_json

KEPT = Path(__file__).parent / "found.json"  # in the repository
STEPS, TRIALS = 200, 150


def found(folder: Path) -> list[dict[str, Any]]:
    """What finished trainings answered: those of the repository, and the folder's."""
    rows = read_json(KEPT) if KEPT.is_file() else []
    rows += [read_json(path) for path in sorted((folder / "found").glob("*.json"))]
    by_run = {(row["variant"], row["seed"], row["steps"]): row for row in rows}
    return [by_run[run] for run in sorted(by_run)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers_ablations", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated (default: all)")
    parser.add_argument("--seeds", default="0,1,2", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training (%(default)s)")
    parser.add_argument("--trials", type=int, default=TRIALS, help="of each task (%(default)s)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="at once (%(default)s)")
    parser.add_argument("--write", action="store_true", help="keep what is found, the table and the figure")
    given = parser.parse_args(arguments)
    names, seeds = given.variants.split(","), [int(seed) for seed in given.seeds.split(",")]
    if unknown := set(names) - set(VARIANTS):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    left = remaining(found(given.folder), names, seeds, given.steps)
    if left:
        data.prepare(given.folder)
    for name, seed, status in track(run_all(left, given), "trainings", total=len(left)):
        if status:
            print(f"{name} with seed {seed} failed: see {log_of(given.folder, name, seed)}", file=sys.stderr)
        if given.write:  # each time: a run of hours may be stopped
            write_json(KEPT, found(given.folder), indent=1)
    rows = [row for row in found(given.folder) if row["steps"] == given.steps]
    print(table.markdown(rows))
    if given.write:
        write_json(KEPT, found(given.folder), indent=1)
        table.write(rows)


def remaining(
    rows: Sequence[dict[str, Any]], names: Sequence[str], seeds: Sequence[int], steps: int
) -> list[tuple[str, int]]:
    """The trainings that are not finished, or were not asked all that the table shows; seed by seed."""
    done = {
        (row["variant"], row["seed"])
        for row in rows
        if row["steps"] == steps and all(table.answers([row], column) for column in table.COLUMNS)
    }
    return [(name, seed) for seed in seeds for name in names if (name, seed) not in done]


def log_of(folder: Path, name: str, seed: int) -> Path:
    return folder / "logs" / f"{name}-{seed}.txt"


def run_all(left: Sequence[tuple[str, int]], given: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """Runs the trainings, a few at a time; each with its exit status, as they end in order."""

    def run(name: str, seed: int) -> tuple[str, int, int]:
        log = log_of(given.folder, name, seed)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.papers_ablations.training", str(given.folder)]
        command += ["--variant", name, "--seed", str(seed)]
        command += ["--steps", str(given.steps), "--trials", str(given.trials)]
        with log.open("a", encoding="utf-8") as file:
            status = subprocess.run(
                command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}
            ).returncode
        return name, seed, status

    with ThreadPoolExecutor(given.processes) as pool:
        yield from pool.map(lambda one: run(*one), left)


if __name__ == "__main__":
    main()
