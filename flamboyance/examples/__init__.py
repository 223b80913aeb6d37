"""Pictures for a first try with the embedded model: `captioned/` (each with its text beside it) and `new/`.

`python -m scripts.pretrain_mini.pictures` drew them, in the world that flamingo-mini was trained on. It knows no other.

    captioner = fl.FewShotTask(model, processor, fl.examples.demonstrations)
    captioner(fl.examples.queries)
"""

from pathlib import Path

folder = Path(__file__).parent

demonstrations: list[tuple[Path, str]] = [
    (text.with_suffix(".png"), text.read_text(encoding="utf-8").strip())
    for text in sorted((folder / "captioned").glob("*.txt"))
]
"""Four pictures with their captions: (path, text)."""

queries: list[Path] = sorted((folder / "new").glob("*.png"))
"""Four pictures without."""
