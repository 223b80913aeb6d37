"""Scores as shares of Flamingo's, as in OpenFlamingo's Figure 1."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from flamboyance.reports import published
from flamboyance.reports.evaluation_run import TableRow
from flamboyance.reports.report import USUAL, Key, Report


@dataclass(frozen=True)
class Share:
    """Scores divided by a reference's, averaged over settings (tasks × numbers of shots), as OpenFlamingo's Figure 1.

    Attributes:
        name: of a run, or of a published model, which has "(paper)" after it.
        mean, std: over settings, the deviation of the population.
        reference: what they are divided by.
    """

    name: str
    mode: str
    mean: float
    std: float
    settings: int
    reference: str


def shares_of_flamingo(report: Report) -> list[Share]:
    """Each run and OpenFlamingo of `beside` as a share of the Flamingo that it is compared with, whose demonstrations
    are random always: the papers have none with RICES. All of a mode over the same settings: those that all runs with
    that mode have. A run of a model that is not published is compared with the first published model's Flamingo. None
    where runs asked other data than the benchmarks' and no published model was named.
    """
    found: list[Share] = []
    if not report.comparable:
        return found
    usual = published.counterpart(report.beside[0] if report.beside else USUAL) or ""
    for mode in dict.fromkeys(mode for _, mode, _ in report.keys):
        runs = [(run, lines) for run, lines in zip(report.runs, report.lines, strict=True) if _has(lines, mode)]
        shared = [(t, n) for t, m, n in report.keys if m == mode and all(_scored(ls, (t, m, n)) for _, ls in runs)]
        series = []
        for run, lines in runs:
            own = published.counterpart(run.model) or usual
            series.append((run.name, own, {(t, n): lines[t, mode, n].mean for t, n in shared}))
        for name in report.beside:
            values = {(t, n): published.score(name, t, n, mode) for t, n in shared}
            if published.counterpart(name) != name and any(values.values()):
                series.append(
                    (f"{name} (paper)", published.counterpart(name) or "", {k: v[0] for k, v in values.items() if v})
                )
        for name, reference, values in series:
            pairs = [(values.get((t, n)), published.score(reference, t, n)) for t, n in shared]
            quotients = [value / other[0] for value, other in pairs if value is not None and other]
            if quotients:
                spread = statistics.pstdev(quotients)
                found.append(Share(name, mode, statistics.fmean(quotients), spread, len(quotients), reference))
    return found


def _has(lines: dict[Key, TableRow], mode: str) -> bool:
    return any(m == mode and line.mean is not None for (_, m, _), line in lines.items())


def _scored(lines: dict[Key, TableRow], key: Key) -> bool:
    return key in lines and lines[key].mean is not None


def told(share: Share) -> str:
    """A share as a sentence."""
    return (
        f"{share.name}, demonstrations {share.mode}: {share.mean:.1%} of {share.reference} "
        f"({100 * share.std:.1f} points of deviation over {share.settings} settings of task and shots)"
    )
