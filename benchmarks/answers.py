"""Works (a) to (e) of `make bench`: Flamboyance, open_flamingo 2.0.1 and Transformers' Idefics answer the same prompts.

Each way is a process of its own, kept alive; they take turns. Flamboyance and the reference have the same weights, and
their answers are compared before anything is timed. Idefics has random weights of the same shape.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import reference, results
from benchmarks.parts import NAMES, floor
from benchmarks.processes import CLOCKS, Worker
from benchmarks.sizes import Size
from benchmarks.works import NEW_TOKENS, WORKS, Work, write_images

REFERENCE, IDEFICS = "open_flamingo 2.0.1", "Transformers' Idefics"


@dataclass(frozen=True)
class Way:
    """Who answers, and in what precision."""

    who: str
    dtype: str


OWN = "Flamboyance"


@dataclass
class Bench:
    """Open workers of all ways, and how they are measured."""

    workers: dict[Way, Worker]
    images: str
    folder: Path
    size: Size
    repeats: int
    clock: str
    precisions: tuple[str, ...]

    def rows(self, work: Work) -> list[dict[str, Any]]:
        """Measures one work; a result for each pair of Flamboyance and a peer."""
        ways = [way for way in self.workers if way.who != IDEFICS or work.letter in "abd"]
        for way in ways:
            self._prepare(way, work)
        change = self._logits(work)
        for way in ways:
            self.workers[way]("watch_memory")
        first = {way: self._ask(way, work.peer_candidates or work.candidates) for way in ways}
        taken = self._turns(work, first)
        memory = {way: self._memory(way) for way in ways}
        found = []
        for precision in self.precisions:
            own = Way(OWN, precision)
            described = {**memory[own], **self._parts(own, work, taken[own])}
            peers = [way for way in ways if way.who == REFERENCE or (way.who == IDEFICS and way.dtype == precision)]
            for peer in peers:
                row = {"work": work.name, "peer": peer.who, "dtype": precision, "peer_dtype": peer.dtype}
                row |= self._times(taken[peer], taken[own]) | described
                row |= {f"peer_{name}": value for name, value in memory[peer].items()}
                if peer.who == REFERENCE:
                    row |= compare(first[peer]["output"], first[own]["output"]) | change.get(precision, {})
                found.append(row)
        return found

    def _prepare(self, way: Way, work: Work) -> None:
        extra: dict[str, Any] = {OWN: {"known": work.known}, IDEFICS: {"tokens": work.prompt_tokens}}.get(way.who, {})
        asked = work.asked(work.peer_queries if way.who == REFERENCE else None)
        self.workers[way]("prepare", images=self.images, asked=asked, **extra)

    def _ask(self, way: Way, candidates: int) -> dict[str, Any]:
        extra = {"candidates": candidates} if way.who == REFERENCE else {}
        return self.workers[way]("answer", **extra)

    def _turns(self, work: Work, first_answers: dict[Way, dict[str, Any]]) -> dict[Way, list[dict[str, Any]]]:
        """Timed answers of all ways, one after another; the first to answer changes from turn to turn. Where a peer
        takes minutes, its first answer counts, which otherwise is for warming up."""
        ways = list(first_answers)
        taken: dict[Way, list[dict[str, Any]]] = {way: [] for way in ways}
        for way in ways:
            if way.who == REFERENCE and work.peer_repeats:
                taken[way].append(self._of_all(first_answers[way], work))
        for turn in range(self.repeats):
            first = turn % len(ways)
            for way in ways[first:] + ways[:first]:
                if way.who == REFERENCE and len(taken[way]) == work.peer_repeats:
                    continue
                time.sleep(0.3)  # the one before stops spinning
                taken[way].append(self._timed(way, work))
        return taken

    def _timed(self, way: Way, work: Work) -> dict[str, Any]:
        measured = work.peer_candidates
        if way.who != REFERENCE or measured is None:
            answer = self._ask(way, work.candidates)
            return self._of_all(answer, work) if way.who == REFERENCE else answer
        few, many = (self._ask(way, count) for count in (2, measured))
        clock, further = CLOCKS[self.clock], (work.candidates - 2) / (measured - 2)
        return {clock: few[clock] + (many[clock] - few[clock]) * further}

    def _of_all(self, answer: dict[str, Any], work: Work) -> dict[str, Any]:
        """The reference's time for all queries, from that for those that it was asked."""
        clock = CLOCKS[self.clock]
        return {**answer, clock: answer[clock] * work.queries / (work.peer_queries or work.queries)}

    def _memory(self, way: Way) -> dict[str, float]:
        """The most that was resident, and how much of it is gone now that the work is done. (What is resident before
        is no measure: the system takes pages of mapped files away while they are not used.)"""
        peak = self.workers[way]("peak_memory")
        return {"peak_gb": peak / 1e9, "added_gb": (peak - self.workers[way]("watch_memory")) / 1e9}

    def _times(self, theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
        clock = CLOCKS[self.clock]
        all_theirs, all_ours = ([answer[clock] for answer in answers] for answers in (theirs, ours))
        seconds, peer_seconds = statistics.median(all_ours), statistics.median(all_theirs)
        times = {"peer_seconds": peer_seconds, "seconds": seconds, "ratio": peer_seconds / seconds}
        return times | {"peer_all_seconds": all_theirs, "all_seconds": all_ours}

    def _parts(self, own: Way, work: Work, answers: list[dict[str, Any]]) -> dict[str, Any]:
        """Shares of the parts, and of the machine's ceiling that each achieved."""
        worker = self.workers[own]
        rates = worker("machine_rates", precision=own.dtype, clock=self.clock)
        counts = worker("counts")
        seconds = {name: statistics.median(answer["parts"][name] for answer in answers) for name in NAMES}
        total = sum(seconds.values())
        achieved = {}
        for name, calls in counts["calls"].items():
            nbytes = calls * counts["weight_bytes"][name]
            if name == "decoding" and not work.candidates:
                nbytes += calls * read_of_cache(work, counts["cache_bytes"])
            achieved[name] = floor(counts["operations"][name], nbytes, rates) / seconds[name]
        return {
            "parts": seconds,
            "shares": {name: value / total for name, value in seconds.items()},
            "of_ceiling": achieved,
            "gflop": {name: count / 1e9 for name, count in counts["operations"].items()},
            "ceiling_gflops": rates["matrix"] / 1e9,
            "ceiling_gb_per_s": rates["memory"] / 1e9,
        }

    def _logits(self, work: Work) -> dict[str, dict[str, float]]:
        """How far each precision's logits of the prompts' next tokens lie from the reference's."""
        if work.known:  # the same prompts as in (b)
            return {}
        files = {}
        for way, worker in self.workers.items():
            if way.who != IDEFICS:
                files[way] = self.folder / f"logits_{way.who.split()[0]}_{way.dtype}.pt"
                worker("logits", file=str(files[way]))
        wanted = torch.load(next(files[way] for way in files if way.who == REFERENCE))
        return {way.dtype: difference(torch.load(files[way]), wanted) for way in files if way.who == OWN}


def read_of_cache(work: Work, kept: Mapping[str, int]) -> float:
    """Bytes of what is kept that a decode step must read: of each prompt once, however many beams; each sequence's own
    tokens (half of the new ones, in the middle); the keys and values of each prompt's last image."""
    tokens = work.queries * (work.prompt_tokens + work.beams * NEW_TOKENS / 2)
    return tokens * kept["token"] + work.queries * kept["image_keys_values"]


def difference(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """Of logits (B, V): the largest difference, and the mean one in standard deviations of the wanted."""
    apart = (found - wanted).abs()
    return {"logits_max": apart.max().item(), "logits_mean_of_std": (apart.mean() / wanted.std()).item()}


def compare(theirs: list[Any], ours: list[Any]) -> dict[str, float]:
    """How alike two answers are: the share of equal texts, or the largest difference of scores. The reference may have
    answered the first queries only."""
    if isinstance(theirs[0], str):
        pairs = zip(theirs, ours[: len(theirs)], strict=True)
        return {"same_answers": float(np.mean([" ".join(a.split()) == " ".join(b.split()) for a, b in pairs]))}
    known = np.array(theirs)  # the reference may have scored a part
    return {"scores_max": float(np.abs(known - np.array(ours)[:, : known.shape[1]]).max())}


def measure(
    directory: Path, size: Size, letters: Iterable[str], repeats: int, threads: int, clock: str
) -> list[dict[str, Any]]:
    """Results of the works with these letters."""
    python = reference.environment(directory)
    weights = reference.weights(directory, python, size)
    precisions = ("fp32", "bf16") if results.has_bf16() else ("fp32",)
    shape = {"cross_attn_every_n_layers": size.cross_attn_every_n_layers, "threads": threads}
    rows = []
    with ExitStack() as stack:
        theirs = stack.enter_context(reference.worker(python, directory / "reference.log", "reference_answers.py"))
        theirs("load", paths=weights.paths, **shape)
        workers = {Way(REFERENCE, "fp32"): theirs}
        for precision in precisions:
            log = directory / f"ours_{precision}.log"
            ours = stack.enter_context(reference.own_worker(log, "flamboyance_answers"))
            ours("load", paths=weights.paths, precision=precision, clock=clock, **shape)
            workers[Way(OWN, precision)] = ours
        if set(letters) & set("abd"):
            for precision in precisions:
                log = directory / f"idefics_{precision}.log"
                idefics = stack.enter_context(reference.own_worker(log, "idefics_answers"))
                idefics("load", vision=size.vision, language=size.language, precision=precision, **shape)
                workers[Way(IDEFICS, precision)] = idefics
        bench = Bench(workers, str(write_images(directory)), directory, size, repeats, clock, precisions)
        for work in WORKS:
            if work.letter in letters:
                found = bench.rows(work)
                for row in found:
                    print(f"{row['work']}; {row['dtype']} beside {row['peer']}: {row['ratio']:.2f}", flush=True)
                rows += found
    return rows
