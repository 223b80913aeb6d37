"""Results directories read back, tables beside published scores, differences and files, against hand computation."""

import csv
import json
import math
import random
import statistics
import sys
from pathlib import Path

import pytest

from flamboyance.cli import main
from flamboyance.reports import figures
from flamboyance.reports.evaluation_run import read_run, read_runs
from flamboyance.reports.figures import draw
from flamboyance.reports.paired import compare
from flamboyance.reports.report import build, shares_of_flamingo
from flamboyance.reports.tables import differences, gains, markdown, scores, unfinished, write_csv

from .written_run import Row, WrittenRun, row


def cells(table, start: int = 0) -> list[list[str]]:
    return [list(line[start:]) for section in table.sections for line in section]


def valued(values: list[float], **changes) -> list[Row]:
    return [row(f"q{i}", value, **changes) for i, value in enumerate(values)]


# -- reading and tables


def test_mean_deviation_and_interval_over_seeds(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path, "openflamingo/OpenFlamingo-9B-vitl-mpt7b").task("coco", "COCO", "CIDEr", 5_000)
    for seed, value in enumerate((88.0, 89.0, 93.0)):
        run.cell("coco", 4, "random", seed, valued([1, 2]), value, [value - 2, value + 3])
    run.cell("coco", 0, "random", 0, valued([1, 2]), 80.04, [70.0, 90.0])
    (line0, line4) = read_run(tmp_path).lines()
    assert line4.mean == pytest.approx(90.0)
    assert line4.std == pytest.approx(math.sqrt((4 + 1 + 9) / 3))  # of the population
    assert line4.interval == pytest.approx((88.0, 93.0))
    assert line0.std is None
    table = scores(build([read_run(tmp_path)]))
    assert table.columns[-1] == "OpenFlamingo-9B (paper)"
    assert cells(table) == [
        ["COCO, CIDEr", "random", "0", "80.0", "70.0 to 90.0", "1", "2", "79.5 (0.2)"],
        ["", "", "4", "90.0 (2.2)", "88.0 to 93.0", "3", "2", "89.0 (0.3)"],
    ]


def test_order_of_tasks_modes_and_shots(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path).task("vqav2", "VQAv2", "VQA accuracy").task("coco", "COCO", "CIDEr")
    for task in ("coco", "vqav2"):
        for mode in ("rices", "random", "fixed"):
            for shots in (16, 0, 8):
                run.cell(task, shots, mode, 0)
    keys = [line.key for line in read_run(tmp_path).lines()]
    modes = ("random", "rices", "fixed")
    assert keys == [(task, mode, shots) for task in ("vqav2", "coco") for mode in modes for shots in (0, 8, 16)]


def test_published_columns(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path).task("coco", "COCO", "CIDEr").task("own", "My own", "accuracy")
    for mode in ("random", "rices"):
        run.cell("coco", 32, mode, 0)
    run.cell("own", 32, "random", 0)
    report = build([read_run(tmp_path)])
    assert report.beside == ("OpenFlamingo-9B",)  # a model that nobody published
    beside = build([read_run(tmp_path)], ["of-9b", "Flamingo-80B", "OF-9B"])
    assert beside.beside == ("OpenFlamingo-9B", "Flamingo-80B")
    table = scores(beside)
    assert cells(table, -2) == [["99.5 (0.1)", "113.8"], ["109.0", "113.8†"], ["–", "–"]]
    assert any(note.startswith("†") for note in table.notes)
    assert any("2204.14198, Table 3" in note and "Karpathy test" in note for note in table.notes)
    with pytest.raises(ValueError, match=r"'GPT'.*Flamingo-80B"):
        build([read_run(tmp_path)], ["GPT"])


def test_a_task_that_nobody_published_has_no_columns(tmp_path: Path) -> None:
    WrittenRun(tmp_path).task("own", "My own", "accuracy").cell("own")
    report = build([read_run(tmp_path)], ["OpenFlamingo-9B"])
    assert report.beside == () and scores(report).columns[-1] == "queries"


def test_unfinished_cells_are_told_and_not_counted(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path).task("coco", "COCO", "CIDEr", 5_000)
    run.cell("coco", 4, "random", 0, valued([60.0]), 60.0)
    run.killed("coco", 4, "random", 1, valued([0, 0, 0]))
    (tmp_path / "coco" / "4-random-2").mkdir()  # nothing answered yet
    (tmp_path / "features").mkdir()  # not a task
    report = build([read_run(tmp_path)])
    assert report.lines[0]["coco", "random", 4].mean == 60.0
    assert unfinished(report) == ["flamingo-mini: coco, 4 shots, random, seed 1: 3 of 5,000 queries answered"]
    assert "3 of 5,000" in markdown(report)
    assert [one["id"] for one in report.runs[0].unfinished[0].rows()] == ["q0", "q1", "q2"]


def test_values_that_are_none(tmp_path: Path) -> None:
    """A split whose answers a server holds has no value; a metric may be undefined."""
    run = WrittenRun(tmp_path).task("vqav2", "VQAv2", "VQA accuracy")
    run.cell("vqav2", 4, "random", 0, valued([1.0]), None)
    run.cell("vqav2", 8, "random", 0, valued([1.0]), math.nan, [math.nan, math.nan])
    run.cell("vqav2", 8, "random", 1, valued([1.0]), 40.0)
    table = scores(build([read_run(tmp_path)]))
    assert [line[3:5] for line in cells(table)] == [["–", "–"], ["40.0", "40.0 to 60.0"]]


def test_no_run_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        read_run(tmp_path)
    WrittenRun(tmp_path).task("coco", "COCO", "CIDEr").cell("coco")
    file = tmp_path / "coco" / "4-random-0" / "score.json"
    file.write_text('{"value": 3', encoding="utf-8")
    with pytest.raises(ValueError, match=r"4-random-0/score\.json.*damaged"):
        read_run(tmp_path)
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"score\.json.*damaged.*object"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json.*damaged"):
        read_run(tmp_path)


def test_an_empty_run(tmp_path: Path) -> None:
    WrittenRun(tmp_path)
    report = build([read_run(tmp_path)])
    assert cells(scores(report)) == [] and report.beside == ()
    assert "## Scores" in markdown(report)
    assert draw(report, tmp_path) == []


def test_runs_of_one_model_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        WrittenRun(tmp_path / name, "/home/me/models/bird model")
    assert [run.name for run in read_runs([tmp_path / "a", tmp_path / "b"])] == ["bird model (a)", "bird model (b)"]
    with pytest.raises(ValueError, match="given twice"):
        read_runs([tmp_path / "a", tmp_path / "b" / ".." / "a"])


# -- differences


def two_runs(tmp_path: Path, first: list[Row], second: list[Row], labels: list[str] | None = None) -> list:
    for name, rows in (("first", first), ("second", second)):
        run = WrittenRun(tmp_path / name, name).task("t", "T", "metric", len(rows), labels)
        run.cell("t", 4, "random", 0, rows)
    return compare(*read_runs([tmp_path / "first", tmp_path / "second"]))


def test_a_constant_difference_is_certain(tmp_path: Path) -> None:
    """However much queries differ among themselves, a gain of 10 on each is a gain of 10."""
    values = [0.0, 30.0, 100.0, 60.0, 10.0]
    (one,) = two_runs(tmp_path, valued(values), valued([value + 10 for value in values]))
    assert (one.first, one.second, one.difference) == pytest.approx((40.0, 50.0, 10.0))
    assert one.interval == pytest.approx((10.0, 10.0)) and one.queries == 5


def test_the_paired_interval_is_that_of_the_differences(tmp_path: Path) -> None:
    """Against the normal approximation, which 400 differences justify."""
    draw = random.Random(0)
    a = [draw.uniform(0, 100) for _ in range(400)]
    gains = [draw.gauss(1.0, 8.0) for _ in a]
    (one,) = two_runs(tmp_path, valued(a), valued([x + y for x, y in zip(a, gains, strict=True)]))
    assert one.interval is not None
    mean, half = statistics.fmean(gains), 1.96 * statistics.pstdev(gains) / 20
    assert one.difference == pytest.approx(mean)
    assert one.interval == pytest.approx((mean - half, mean + half), abs=0.12)


def test_seeds_are_averaged_by_query(tmp_path: Path) -> None:
    for name, seeds in (("a", [[0, 100], [100, 100]]), ("b", [[50, 100]])):
        run = WrittenRun(tmp_path / name, name).task("t", "T", "metric")
        for seed, values in enumerate(seeds):
            run.cell("t", 4, "random", seed, valued(values))
    (one,) = compare(*read_runs([tmp_path / "a", tmp_path / "b"]))
    assert (one.first, one.second, one.interval) == (75.0, 75.0, (0.0, 0.0))


def labelled(chances: list[float], labels: list[str]) -> list[Row]:
    return [
        row(f"q{i}", None, scores={"no": math.log(1 - p), "yes": math.log(p)}, references=[label])
        for i, (p, label) in enumerate(zip(chances, labels, strict=True))
    ]


def test_areas_under_the_curve_are_compared_by_the_metric_itself(tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = random.Random(1)
    labels = [draw.choice(["yes", "no"]) for _ in range(60)]
    first = [round(draw.uniform(0.05, 0.95), 1) for _ in labels]  # rounded: ties
    second = [min(0.95, p + 0.3) if label == "yes" else p for p, label in zip(first, labels, strict=True)]
    (one,) = two_runs(tmp_path, labelled(first, labels), labelled(second, labels), ["no", "yes"])
    right = [label == "yes" for label in labels]
    expected = [100 * metrics.roc_auc_score(right, chances) for chances in (first, second)]
    assert [one.first, one.second] == pytest.approx(expected)
    assert one.interval is not None and 0 < one.interval[0] < one.difference < one.interval[1]


def test_other_queries_are_not_compared(tmp_path: Path) -> None:
    (one,) = two_runs(tmp_path, valued([1, 2, 3]), valued([1, 2]))
    assert one.difference is None and one.why_not == "other queries: 1 only in the first, 0 only in the second"
    table = differences(build(read_runs([tmp_path / "first", tmp_path / "second"])))
    assert table is not None and cells(table) == [
        ["T", "random", "4", "–", "–", "–", "–", "2", "other queries: 1 only in the first, 0 only in the second"]
    ]


@pytest.mark.parametrize("shown", [[], [{"id": "s1", "image": None, "asked": [], "answer": "a cat"}]])
def test_what_0_shots_show_is_what_the_prompts_have(tmp_path: Path, shown: list[Row]) -> None:
    """Tasks that bring their own demonstrations show none of them."""
    written = WrittenRun(tmp_path).task("t", "T", "top-1")
    written.cell("t", 0, "random", 0, [row("1", 100.0, demonstrations=shown)])
    written.cell("t", 4, "random", 0, [row("1", 100.0)])
    (note,) = gains(build([read_run(tmp_path)], with_gains=True)).notes
    assert ("two demonstrations" in note) == bool(shown)


def test_queries_that_show_other_images_are_not_compared(tmp_path: Path) -> None:
    """Two data sets of one name, with the same labels in the same order. Where the images lie does not matter."""
    found = []
    for name, image in (("first", "/one/a.jpg"), ("moved", "C:\\two\\a.jpg"), ("other", "/one/b.jpg")):
        written = WrittenRun(tmp_path / name).task("t", "T", "top-1")
        written.cell("t", 4, "random", 0, [row("1", 100.0, image=image)])
        found.append(read_run(tmp_path / name))
    assert compare(found[0], found[1])[0].why_not is None
    assert compare(found[0], found[2])[0].why_not == "the images of 1 queries differ, such as '1'"


def test_each_further_run_is_compared_with_the_first(tmp_path: Path) -> None:
    for name, values in (("a", [10, 20]), ("b", [20, 30]), ("c", [0, 10])):
        WrittenRun(tmp_path / name, name).task("t", "T", "m").cell("t", 4, rows=valued(values))
    table = differences(build(read_runs([tmp_path / name for name in "abc"])))
    assert table is not None and table.columns[3:5] == ("a", "the other run")
    assert [row[:6] for row in cells(table)] == [
        ["b: T", "random", "4", "15.0", "25.0", "+10.0"],
        ["c: T", "random", "4", "15.0", "5.0", "-10.0"],
    ]
    assert "each other run minus a" in table.notes[0]


def test_what_else_keeps_runs_from_being_compared(tmp_path: Path) -> None:
    (one,) = two_runs(tmp_path / "1", valued([1, 2]), valued([1, 2], references=["another"]))
    assert one.why_not == "the references of 2 queries differ, such as 'q0'"
    (one,) = two_runs(tmp_path / "2", [row("a")], [row("a")])
    assert one.why_not == "the metric has no values of single queries"
    (one,) = two_runs(tmp_path / "3", [], [])
    assert one.why_not == "no queries"
    (one,) = two_runs(tmp_path / "4", labelled([0.3], ["no"]), labelled([0.4], ["no"]), ["no", "yes"])
    assert one.why_not == "all queries have the same label"


def test_runs_without_anything_in_common(tmp_path: Path) -> None:
    WrittenRun(tmp_path / "a", "a").task("t", "T", "m").cell("t", 4)
    WrittenRun(tmp_path / "b", "b").task("t", "T", "m").cell("t", 8)
    table = differences(build(read_runs([tmp_path / "a", tmp_path / "b"])))
    assert table is not None and not table.sections and "no task in common" in table.notes[0]
    assert differences(build([read_run(tmp_path / "a")])) is None


def test_a_damaged_prediction_is_named(tmp_path: Path) -> None:
    two_runs(tmp_path, valued([1, 2]), valued([1, 2]))
    file = tmp_path / "second" / "t" / "4-random-0" / "predictions.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text(f"{lines[0]}\n{lines[1][:30]}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"second/t/4-random-0/predictions\.jsonl, line 2"):
        compare(*read_runs([tmp_path / "first", tmp_path / "second"]))


# -- shares, figures, files


def published_run(folder: Path, model: str = "openflamingo/OpenFlamingo-3B-vitl-mpt1b") -> WrittenRun:
    run = WrittenRun(folder, model).task("coco", "COCO", "CIDEr").task("own", "My own", "accuracy")
    for shots, value in ((0, 73.0), (4, 42.5)):
        for seed in (0, 1):
            run.cell("coco", shots, "random", seed, [], value)
        run.cell("coco", shots, "rices", 0, [], 2 * value)
        run.cell("own", shots, "random", 0, [], 10.0)
    return run


def test_shares_of_flamingo(tmp_path: Path) -> None:
    """Flamingo-3B has 73.0 and 85.0 on COCO, OpenFlamingo-3B 74.9 and 77.3."""
    published_run(tmp_path)
    found = {(one.name, one.mode): one for one in shares_of_flamingo(build([read_run(tmp_path)]))}
    mine = found["OpenFlamingo-3B-vitl-mpt1b", "random"]
    assert (mine.mean, mine.std, mine.settings, mine.reference) == pytest.approx((0.75, 0.25, 2, "Flamingo-3B"))
    assert found["OpenFlamingo-3B-vitl-mpt1b", "rices"].mean == pytest.approx(1.5)
    assert found["OpenFlamingo-3B (paper)", "random"].mean == pytest.approx((74.9 / 73 + 77.3 / 85) / 2)
    assert found["OpenFlamingo-3B (paper)", "rices"].mean == pytest.approx((81.6 / 73 + 91.3 / 85) / 2)


def test_shares_are_of_the_settings_that_all_runs_have(tmp_path: Path) -> None:
    published_run(tmp_path / "a")
    WrittenRun(tmp_path / "b", "mine").task("coco", "COCO", "CIDEr").cell("coco", 4, "random", 0, [], 93.1)
    found = shares_of_flamingo(build(read_runs([tmp_path / "a", tmp_path / "b"]), ["OpenFlamingo-9B"]))
    random_ = {one.name: one for one in found if one.mode == "random"}
    assert random_["OpenFlamingo-3B-vitl-mpt1b"].mean == pytest.approx(0.5)
    assert random_["mine"].mean == pytest.approx(1.0) and random_["mine"].reference == "Flamingo-9B"
    assert random_["OpenFlamingo-9B (paper)"].mean == pytest.approx(89.0 / 93.1)


def test_figures(tmp_path: Path) -> None:
    published_run(tmp_path / "run")
    names = [name for name, _ in draw(build([read_run(tmp_path / "run")]), tmp_path / "figures")]
    assert names == [
        "figure-1-share-of-flamingo.png",
        "figure-6-shots-random.png",
        "figure-6-shots-rices.png",
        "figure-7-share-of-fine-tuned.png",
        "random-against-rices.png",
    ]
    for name in names:
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "figures" / name).with_suffix(".svg").read_text(encoding="utf-8")


def test_what_a_figure_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(figures, "save", lambda figure, file: drawn.update({file.stem: figure}))
    published_run(tmp_path)
    draw(build([read_run(tmp_path)]), tmp_path)
    coco, own = drawn["figure-6-shots-random"].axes  # of the two, only one is published: no average
    assert (coco.get_title(loc="left"), coco.get_ylabel(), coco.get_xlabel()) == ("COCO", "CIDEr", "shots")
    assert own.get_title(loc="left") == "My own" and [t.get_text() for t in own.get_xticklabels()] == ["0", "4"]
    lines = {container.get_label(): list(container[0].get_ydata()) for container in coco.containers}
    assert lines == {
        "OpenFlamingo-3B-vitl-mpt1b": [73.0, 42.5],
        "OpenFlamingo-3B (paper)": [74.9, 77.3],
        "Flamingo-3B (paper)": [73.0, 85.0],
    }
    assert [axes.get_title(loc="left") for axes in drawn["random-against-rices"].axes] == ["COCO"]  # both ways
    heights = [bar.get_height() for bar in drawn["figure-1-share-of-flamingo"].axes[0].patches]
    assert heights[:2] == pytest.approx([75.0, 100 * (74.9 / 73 + 77.3 / 85) / 2])
    # 4 shots, of mPLUG's 155.1.
    shown = [bar.get_height() for bar in drawn["figure-7-share-of-fine-tuned"].axes[0].patches]
    assert shown == pytest.approx([100 * value / 155.1 for value in (42.5, 85.0, 77.3, 91.3, 85.0)])


def titles_of_panels(report, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[float]]]:
    """The panels of figure 6 by title and metric, each with its lines' values."""
    drawn = {}
    monkeypatch.setattr(figures, "save", lambda figure, file: drawn.update({file.stem: figure}))
    draw(report, folder)
    return {
        (axes.get_title(loc="left"), axes.get_ylabel()): [list(one[0].get_ydata()) for one in axes.containers]
        for axes in drawn["figure-6-shots-random"].axes
    }


def test_averages_are_of_tasks_that_are_measured_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = WrittenRun(tmp_path)
    measured = {"coco": "CIDEr", "flickr30k": "CIDEr", "vqav2": "VQA accuracy", "mine": "exact match", "x": "top-1"}
    for number, (task, metric) in enumerate(measured.items()):
        run.task(task, task, metric, 2)
        run.cell(task, 4, "random", 0, [], 10.0 * number)
    panels = titles_of_panels(build([read_run(tmp_path)]), tmp_path, monkeypatch)
    assert list(panels)[5:] == [("Average of coco and flickr30k", "CIDEr")]
    assert panels["Average of coco and flickr30k", "CIDEr"] == [[5.0]]


def test_a_panel_has_the_shots_of_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, drawn = WrittenRun(tmp_path), {}
    for task, numbers in {"two": (0, 2, 4), "five": (0, 5, 10)}.items():
        run.task(task, task, "top-1", 2)
        for number in numbers:
            run.cell(task, number, "random", 0, [], 50.0 + number)
    monkeypatch.setattr(figures, "save", lambda figure, file: drawn.update({file.stem: figure}))
    draw(build([read_run(tmp_path)]), tmp_path)
    ticks = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in drawn["figure-6-shots-random"].axes]
    assert ticks == [["0", "2", "4"], ["0", "5", "10"]]  # no average at 0 shots alone


def test_variants_of_a_metric_are_not_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = WrittenRun(tmp_path)
    for number, variant in enumerate(("a", "a", "a", "b")):
        run.task(f"t{number}", f"T{number}", "VQA accuracy", 2)
        run.about["tasks"][f"t{number}"]["variant"] = variant
        run.cell(f"t{number}", 4, "random", 0, [], 10.0 * number)
    run.save()
    panels = titles_of_panels(build([read_run(tmp_path)]), tmp_path, monkeypatch)
    assert panels["Average of 3 tasks", "VQA accuracy"] == [[10.0]] and len(panels) == 5


def test_runs_that_measured_otherwise_are_neither_averaged_nor_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, variant in (("first", "official"), ("second", "always")):
        run = WrittenRun(tmp_path / name, name)
        for task in ("t", "u"):
            run.task(task, task.upper(), "VQA accuracy", 2)
            run.about["tasks"][task]["variant"] = variant
            run.cell(task, 4, "random", 0, valued([1, 2]))
        run.save()
    report = build(read_runs([tmp_path / "first", tmp_path / "second"]))
    assert [title for title, _ in titles_of_panels(report, tmp_path, monkeypatch)] == ["T", "U"]
    (differing,) = report.differences
    assert [one.difference for one in differing] == [None, None]
    assert all("official" in (one.why_not or "") and "always" in (one.why_not or "") for one in differing)
    assert any("T" in note and "official" in note and "always" in note for note in scores(report).notes)


def test_a_benchmarks_name_with_another_metric_has_nothing_published_beside_it(tmp_path: Path) -> None:
    WrittenRun(tmp_path).task("coco", "coco", "exact match", 5_000).cell("coco", 4, "random", 0, [], 50.0)
    report = build([read_run(tmp_path)])
    assert report.beside == () and not shares_of_flamingo(report)
    assert any("exact match" in note and "CIDEr" in note for note in scores(report).notes)


def test_figures_of_a_task_of_ones_own(tmp_path: Path) -> None:
    WrittenRun(tmp_path).task("own", "My own", "accuracy").cell("own", 4, "balanced", 0, [], 10.0)
    assert [name for name, _ in draw(build([read_run(tmp_path)]), tmp_path)] == ["figure-6-shots-balanced.png"]


def test_csv_has_all_digits(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path, "a, b").task("coco", 'C"O', "CIDEr")
    run.cell("coco", 4, "rices", 0, valued([1.0], dropped=2), 1 / 3, [0.1, 0.7])
    write_csv(build([read_run(tmp_path)], ["OpenFlamingo-9B", "Flamingo-80B"]), tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        (one,) = csv.DictReader(file)
    assert one["model"] == "a, b" and one["title"] == 'C"O' and float(one["mean"]) == 1 / 3 and one["std"] == ""
    assert (one["low"], one["high"], one["fewest_queries"], one["dropped"]) == ("0.1", "0.7", "1", "2")
    assert (one["OpenFlamingo-9B"], one["OpenFlamingo-9B std"], one["Flamingo-80B"]) == ("93.1", "", "")


def test_markdown_takes_text_for_text(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path, "x").task("t", "a|b <script>*\n# c", "m`")
    run.cell("t")
    text = markdown(build([read_run(tmp_path)]))
    assert "a\\|b &lt;script>\\* \\# c, m\\`" in text and "<script>" not in text
    lines = [line for line in text.split("\n") if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


# -- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / 'a run\'s "folder" <b> #1'
    published_run(folder)
    assert main(["report", str(folder), "--beside", "OpenFlamingo-3B, Flamingo-80B"]) == 0
    out = capsys.readouterr().out
    assert "73.0 (0.0)" in out and "84.3" in out and "index.html" in out
    for name in ("report.md", "scores.csv", "index.html", "figure-6-shots-random.svg"):
        assert (folder / name).stat().st_size > 0
    assert "](figure-1-share-of-flamingo.png)" in (folder / "report.md").read_text(encoding="utf-8")


def test_two_runs_into_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_runs(tmp_path, valued([0, 100, 100]), valued([100, 100, 100]))
    before = sorted((tmp_path / "first").iterdir())
    arguments = [str(tmp_path / "first"), str(tmp_path / "second"), "--output", str(tmp_path / "new" / "both")]
    assert main(["report", *arguments]) == 0
    assert "+33.3" in capsys.readouterr().out
    assert "## Difference" in (tmp_path / "new" / "both" / "report.md").read_text(encoding="utf-8")
    assert sorted((tmp_path / "first").iterdir()) == before


def test_mistakes_are_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no results directory" in capsys.readouterr().err
    WrittenRun(tmp_path)
    assert main(["report", str(tmp_path), "--beside", "GPT-4V"]) == 2
    error = capsys.readouterr().err
    assert "'GPT-4V'" in error and error.count("\n") == 1


def test_without_matplotlib_there_are_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published_run(tmp_path)
    monkeypatch.delitem(sys.modules, "flamboyance.reports.figures", raising=False)
    for name in ("matplotlib", "matplotlib.patches"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["report", str(tmp_path)]) == 0
    assert "pip install matplotlib" in capsys.readouterr().err
    assert (tmp_path / "index.html").exists() and "Figures" not in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "about",
    [
        {"tasks": [], "model": [], "machine": 3, "data": 5, "protocol": {}},
        {"tasks": {"t": []}, "model": {"name": 5, "parameters": "many", "dtype": []}},
        {"tasks": {"t": {"title": [1], "metric": {}, "queries": "9", "labels": [{}]}}, "model": {"parameters": True}},
        {"tasks": {"t": {"labels": "yes", "queries": 10**400}, 7: 8}},
    ],
)
def test_a_run_json_of_any_shape_gives_a_report(tmp_path: Path, about: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    WrittenRun(tmp_path).task("t", "T", "m").cell("t", rows=valued([1.0, 2.0]))
    (tmp_path / "run.json").write_text(json.dumps(about), encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 3}, {"demonstrations": ["x"]}, {"demonstrations": {"a": 1}}, {"scores": [1]}, {"references": "cat"},
        {"references": [["cat"]]}, {"asked": [1]}, {"prompt": None}, {"image": {}}, {"score": "high"}, {"dropped": "3"},
        {"asked": {"demonstration": 4}},
    ],
)  # fmt: skip
def test_a_prediction_of_another_shape_is_named(tmp_path: Path, changes: dict) -> None:
    WrittenRun(tmp_path).task("t", "T", "m").cell("t", rows=[row("a"), row("b", dropped=0)])
    file = tmp_path / "t/4-random-0/predictions.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text(f"{lines[0]}\n{json.dumps(json.loads(lines[1]) | changes)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"predictions\.jsonl, line 2.*{next(iter(changes))[:5]}"):
        list(read_run(tmp_path).cells[0].rows())


def test_json_that_is_nested_without_end_is_damaged(tmp_path: Path) -> None:
    WrittenRun(tmp_path).task("t", "T", "m").cell("t", rows=[row("a")])
    (tmp_path / "t/4-random-0/predictions.jsonl").write_text("[" * 200_000 + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1"):
        list(read_run(tmp_path).cells[0].rows())
    (tmp_path / "run.json").write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json.*damaged"):
        read_run(tmp_path)


def test_links_out_of_the_results_directory_are_refused(tmp_path: Path) -> None:
    elsewhere = WrittenRun(tmp_path / "elsewhere").task("t", "T", "m").cell("t", rows=[row("a")])
    run = WrittenRun(tmp_path / "run").task("t", "T", "m")
    folder = run.cell("t", rows=[row("a")])
    for name in ("predictions.jsonl", "score.json"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).symlink_to(elsewhere / name)
        with pytest.raises(ValueError, match=rf"{name}.*run"):
            read_run(run.folder)
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
    (run.folder / "t" / "8-random-0").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="8-random-0"):
        read_run(run.folder)


def test_a_report_writes_over_no_file_that_a_link_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WrittenRun(tmp_path / "run").task("own", "My own", "accuracy").cell("own", 4, "random", 0, [], 10.0)
    (tmp_path / "mine").write_text("kept", encoding="utf-8")
    names = ["report.md", "scores.csv", "index.html", "figure-6-shots-random.png", "figure-6-shots-random.svg"]
    for name in names:
        (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "kept"
    assert all(not (tmp_path / "run" / name).is_symlink() for name in names)


def test_names_that_control_a_terminal_or_a_spreadsheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of a run from elsewhere: escape sequences, formulas, mathematics of a figure, half a character."""
    evil = "\x1b]0;owned\x07\n\ud800 $\\frac{$"
    run = WrittenRun(tmp_path, f"=1+1{evil[:-8]}").task("t", f"=HYPERLINK(1){evil}", f"@m{evil}")
    run.cell("t", rows=valued([1.0]))
    assert main(["report", str(tmp_path)]) == 0
    out, error = capsys.readouterr()
    assert "\x1b" not in out + error and "\x07" not in out + error and "$\\frac{$" in out
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        (one,) = csv.DictReader(file)
    assert [one[name][:3] for name in ("model", "title", "metric")] == ["'=1", "'=H", "'@m"]


def test_seeds_without_a_value_are_told(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path).task("t", "T", "m")
    for seed, value in enumerate((math.nan, 40.0, 44.0)):
        run.cell("t", 8, "random", seed, valued([1.0]), value)
    assert cells(scores(build([read_run(tmp_path)])))[0][3:6] == ["42.0 (2.0)", "40.0 to 60.0", "2 of 3"]


def test_run_json_may_lack_what_is_not_needed(tmp_path: Path) -> None:
    WrittenRun(tmp_path).task("coco", "COCO", "CIDEr").cell("coco")
    (tmp_path / "run.json").write_text(json.dumps({}), encoding="utf-8")
    report = build([read_run(tmp_path)])
    assert cells(scores(report))[0][0] == "coco, CIDEr" and report.runs[0].name == tmp_path.name


def test_other_data_under_a_benchmarks_name_have_nothing_beside_them(tmp_path: Path) -> None:
    written = WrittenRun(tmp_path)
    written.task("coco", "COCO", "CIDEr", queries=48)
    written.cell("coco", 4, "random", 0, [row("1", 50.0)], 50.0)
    run = read_run(tmp_path)
    report = build([run])
    assert report.beside == () and not shares_of_flamingo(report)
    assert any("COCO has 48 queries here, the benchmark 5,000" in note for note in scores(report).notes)
    assert build([run], ["OpenFlamingo-9B"]).beside == ("OpenFlamingo-9B",)  # asked for
