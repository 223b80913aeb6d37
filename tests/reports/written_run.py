"""Results directories for tests, in the format that `flamboyance evaluate` writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Row = dict[str, Any]


def picture(path: Path, color: str = "tomato", size: tuple[int, int] = (48, 32)) -> Path:
    """A small image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def row(id: str, score: float | None = None, **changes: Any) -> Row:
    """A prediction; `changes` replace its fields."""
    return {
        "id": id,
        "image": f"/nowhere/{id}.jpg",
        "asked": [],
        "prompt": "<image>Output:A dog.<|endofchunk|>\n<image>Output:",
        "demonstrations": [{"id": "s1", "image": "/nowhere/s1.jpg", "asked": [], "answer": "A dog."}],
        "generated": "a cat",
        "answer": "a cat",
        "scores": None,
        "references": ["a cat"],
        "score": score,
        "dropped": 0,
    } | changes


class WrittenRun:
    """A results directory that grows by tasks and cells."""

    def __init__(self, folder: Path, model: str = "flamingo-mini") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.about: Row = {
            "command": "flamboyance evaluate",
            "date": "2026-11-21",
            "model": {"name": model, "fingerprint": "0f0f", "parameters": 1_234_567, "dtype": "float32"},
            "protocol": "papers",
            "versions": {"torch": "2.9"},
            "machine": "a CPU",
            "settings": {},
            "tasks": {},
        }
        self.save()

    def save(self) -> None:
        (self.folder / "run.json").write_text(json.dumps(self.about), encoding="utf-8")

    def task(
        self, name: str, title: str, metric: str, queries: int = 0, labels: list[str] | None = None
    ) -> "WrittenRun":
        told = {"title": title, "metric": metric, "files": {}, "support": 9, "queries": queries, "labels": labels}
        self.about["tasks"][name] = told
        self.save()
        return self

    def cell(
        self,
        task: str,
        shots: int = 4,
        mode: str = "random",
        seed: int = 0,
        rows: Sequence[Row] = (),
        value: float | None = 50.0,
        interval: Sequence[float] | None = (40.0, 60.0),
    ) -> Path:
        """A finished cell; returns its folder."""
        folder = self.folder / task / f"{shots}-{mode}-{seed}"
        folder.mkdir(parents=True)
        lines = "".join(json.dumps(one) + "\n" for one in rows)
        (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")
        score = {
            "task": task,
            "metric": self.about["tasks"].get(task, {}).get("metric", "?"),
            "shots": shots,
            "mode": mode,
            "seed": seed,
            "value": value,
            "interval": None if value is None else interval,
            "queries": len(rows),
            "dropped": sum(one["dropped"] for one in rows),
            "seconds": {"all": 1.5},
        }
        (folder / "score.json").write_text(json.dumps(score), encoding="utf-8")
        return folder

    def killed(self, task: str, shots: int, mode: str, seed: int, rows: Sequence[Row]) -> Path:
        """A cell whose process was killed while it wrote a line."""
        folder = self.folder / task / f"{shots}-{mode}-{seed}"
        folder.mkdir(parents=True)
        lines = [json.dumps(one) + "\n" for one in rows]
        (folder / "predictions-0.jsonl").write_text("".join(lines) + '{"id": "cut', encoding="utf-8")
        return folder
