"""The tables of `make bench`, and the README's, which are written from the newest kept run on each instruction set:

python -m benchmarks.table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- make bench: from here -->", "<!-- make bench: to here -->"
REFERENCE = "open_flamingo 2.0.1"
MINI = "flamingo-mini answers {bf16:.1%} of its tasks' questions correctly in bf16, and {fp32:.1%} in fp32."
PARTS = ("vision", "resampler", "prefill", "decoding", "rest")


def full(rows: list[dict[str, Any]]) -> str:
    """Times and memory of all works, in Markdown."""
    head = "| work | peer | ours in | peer, s | ours, s | times as fast | peer, GB | ours, GB | outputs |"
    lines = [head, "|---|---|---|" + "---:|" * 5 + "---|"]
    for r in rows:
        peer = r["peer"] + (f", {r['peer_dtype']}" if "peer_dtype" in r else "")
        lines.append(
            f"| {r['work']} | {peer} | {r['dtype']} | {r['peer_seconds']:.3g} | {r['seconds']:.3g} "
            f"| {r['ratio']:.2f} | {memory(r, 'peer_')} | {memory(r, '')} | {outputs(r)} |"
        )
    return "\n".join(lines)


def memory(row: dict[str, Any], side: str) -> str:
    """Peak memory; in brackets, where it was measured, what the work added to the model and the libraries."""
    return f"{row[f'{side}peak_gb']:.2f}" + _bracket(row.get(f"{side}added_gb"))


def outputs(row: dict[str, Any]) -> str:
    """How what ours gave compares with what the peer gave."""
    words = []
    if "same_answers" in row:
        words.append("equal" if row["same_answers"] == 1 else f"{row['same_answers']:.0%} equal")
    if "scores_max" in row:
        words.append(f"scores ± {row['scores_max']:.0e}")
    if "loss_difference" in row:
        words.append(f"losses ± {row['loss_difference']:.0e}")
    if "logits_mean_of_std" in row:
        words.append(f"logits ± {row['logits_mean_of_std']:.0e} σ")
    return ", ".join(words)


def parts(rows: list[dict[str, Any]]) -> str:
    """Where our time goes; in brackets what each part achieves of the machine's ceiling. In Markdown."""
    lines = [f"| work | in | {' | '.join(PARTS)} |", "|---|---|" + "---:|" * len(PARTS)]
    for r in rows:
        if "of_ceiling" in r and r["peer"] == REFERENCE:
            cells = [f"{r['shares'][name]:.0%}" + _bracket(r["of_ceiling"].get(name)) for name in PARTS]
            lines.append(f"| {r['work']} | {r['dtype']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _bracket(value: float | None) -> str:
    return "" if value is None else f" ({value:.2f})"


def short(content: dict[str, Any]) -> str:
    """The README's: for each work how many times as fast, and the peak memory, beside each peer. In Markdown.

    Args:
        content: of a results file.
    """
    rows = content["rows"]
    peers = list(dict.fromkeys((r["peer"], r["dtype"]) for r in rows))
    heads = [f"vs {peer}, ours in {dtype}" for peer, dtype in peers]
    lines = [f"| times as fast (peak memory, in % of the peer's) | {' | '.join(heads)} |"]
    lines.append("|---|" + "---:|" * len(heads))
    found = {(r["work"], r["peer"], r["dtype"]): r for r in rows}
    for work in dict.fromkeys(r["work"] for r in rows):
        cells = []
        for key in peers:
            r = found.get((work, *key))
            cells.append(f"**{r['ratio']:.1f}** ({r['peak_gb'] / r['peer_peak_gb']:.0%})" if r else "")
        lines.append(f"| {work} | {' | '.join(cells)} |")
    machine = content["machine"]
    below = (
        f"{content['size']}, {content['threads']} threads of {machine['processor']}{units(machine)}, "
        f"{content['date']}; medians of "
        f"{content['repeats']}, in turns. open_flamingo has the same weights and runs in fp32; Idefics has random "
        "weights of the same shape, and our precision."
    )
    if {row["work"][0] for row in rows} & set("ceg"):
        below += (
            " open_flamingo computes each query and candidate separately, so only 8 of 16 queries in (c), 16 of 64 in "
            "(g) and 50 of 1,000 candidates in (e) were timed, and scaled."
        )
    if "mini_accuracy" in content:
        below += " " + MINI.format(**content["mini_accuracy"])
    return "\n".join(lines) + "\n\n" + below


def units(machine: dict[str, Any]) -> str:
    """The instruction set of a run in brackets, and whether the processor has a larger one that was switched off."""
    name = {"AVX512": "AVX-512"}.get(machine.get("instruction_set", ""), machine.get("instruction_set", ""))
    limited = ", with its AVX-512 switched off" if name == "AVX2" and "avx512f" in machine["vector_units"] else ""
    return f" ({name}{limited})" if name else ""


def newest_of_each(folder: Path) -> list[Path]:
    """The latest results of each instruction set, the one with most works first.

    Raises:
        FileNotFoundError: there are none.
    """
    found: dict[str, tuple[str, str, Path, int]] = {}
    for file in folder.glob("bench-*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content["machine"].get("instruction_set", "AVX512")  # not written before 2026-11-28
        entry = (content["date"], file.name, file, len(content["rows"]))
        found[kind] = max(entry, found.get(kind, entry))
    if not found:
        raise FileNotFoundError(f"{folder} holds no bench-….json: run `make bench` first.")
    return [file for *_, file, _ in sorted(found.values(), key=lambda entry: (-entry[3], entry[1]))]


def write(*results: Path, readme: Path = README) -> bool:
    """Puts the tables of results files between the README's two marks; False where it has none."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        return False
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    tables = "\n\n".join(short(json.loads(file.read_text(encoding="utf-8"))) for file in results)
    readme.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")
    return True


def main() -> None:
    files = newest_of_each(FOLDER)
    names, written = ", ".join(file.name for file in files), write(*files)
    print(f"README: tables of {names}" if written else f"README.md has no marks {BEGIN} and {END}; nothing written")


if __name__ == "__main__":
    main()
