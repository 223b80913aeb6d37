"""What a benchmark found: a JSON file and a table for each machine and date, in benchmarks/results/."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from flamboyance.files import write_json, write_text
from flamboyance.model.linear import instruction_set

FOLDER = Path(__file__).parent / "results"


def cpuinfo(field: str) -> str:
    """The first value of a field of /proc/cpuinfo, or nothing."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def has_bf16() -> bool:
    """Whether the processor multiplies in bfloat16 itself."""
    return bool({"avx512_bf16", "amx_bf16"} & set(cpuinfo("flags").split()))


def machine() -> dict[str, Any]:
    flags = set(cpuinfo("flags").split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    return {
        "processor": cpuinfo("model name") or platform.processor(),
        "family_model": f"{cpuinfo('cpu family')}/{cpuinfo('model')}",
        "cores": len(os.sched_getaffinity(0)),
        "vector_units": sorted(flags),
        "instruction_set": instruction_set(),  # what the libraries use, which the environment may limit
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write(name: str, rows: list[dict[str, Any]], table: str, about: dict[str, Any], extra: Path | None) -> Path:
    """Rows and table to the results folder; the rows alone also to `extra`. The files' path, without its ending."""
    here, today = machine(), datetime.date.today().isoformat()
    kind = re.sub(r"[^a-z0-9]+", "-", f"{here['processor']} {here['cores']} cores".lower()).strip("-")
    if here["instruction_set"] != "AVX512":
        kind += f"-{here['instruction_set'].lower()}"
    stem = FOLDER / f"{name}-{kind}-{today}"
    FOLDER.mkdir(exist_ok=True)
    content = {"date": today, "machine": here, **about, "rows": rows}
    write_json(stem.with_suffix(".json"), content)
    title = f"# {name.replace('_', ' ').capitalize()}: {here['processor']}, {here['cores']} cores, {today}\n\n"
    write_text(stem.with_suffix(".md"), title + table + "\n")
    if extra:
        write_rows(rows, extra)
    return stem


def write_rows(rows: list[dict[str, Any]], file: Path) -> None:
    """The rows, each with the processor and the instruction set that it was measured on."""
    here = {name: machine()[name] for name in ("processor", "instruction_set")}
    write_json(file, [{**row, **here} for row in rows])
