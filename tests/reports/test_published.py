"""Published scores: spot checks against the papers' tables, the slips among them, and what is derived from them."""

import statistics
from importlib.resources import files

import pytest

from flamboyance.reports import published

SEVEN = ("coco", "flickr30k", "vqav2", "ok_vqa", "textvqa", "vizwiz", "hateful_memes")
SHOTS = (0, 4, 8, 16, 32)

# (model, task, shots, mode) -> as printed in OpenFlamingo's Tables 11 and 12 and Flamingo's Tables 3 and 4.
PRINTED = [
    (("OpenFlamingo-3B", "coco", 0, "random"), (74.9, 0.2)),
    (("OpenFlamingo-3B (Instruct)", "flickr30k", 32, "random"), (64.5, 1.3)),
    (("OpenFlamingo-4B", "vizwiz", 32, "random"), (23.1, 1.1)),
    (("OpenFlamingo-4B (Instruct)", "coco", 0, "random"), (81.2, 0.3)),
    (("OpenFlamingo-9B", "hateful_memes", 16, "random"), (53.9, 3.1)),
    (("OpenFlamingo-9B", "vqav2", 0, "random"), (52.7, 0.2)),
    (("OpenFlamingo-9B", "ok_vqa", 32, "random"), (42.4, 0.0)),
    (("OpenFlamingo-9B", "hateful_memes", 32, "rices"), (73.6, None)),
    (("OpenFlamingo-3B", "textvqa", 16, "rices"), (27.5, None)),
    (("OpenFlamingo-4B", "textvqa", 32, "rices"), (17.93, None)),  # printed with two decimals
    (("Flamingo-3B", "hateful_memes", 4, "random"), (53.6, None)),
    (("Flamingo-9B", "coco", 32, "random"), (106.3, None)),
    (("Flamingo-80B", "vqav2", 32, "random"), (67.6, None)),  # 67.3 in its section 4.3
    (("Flamingo-80B", "youcook2", 8, "random"), (80.7, None)),
    (("Flamingo-80B", "imagenet", 16, "random"), (66.4, None)),
    (("Flamingo-9B", "imagenet", 16, "rices"), (75.2, None)),
    (("Flamingo-3B", "imagenet", 8, "rices"), (70.9, None)),
]


@pytest.mark.parametrize("asked, printed", PRINTED, ids=lambda value: str(value[0]) if len(value) == 4 else "")
def test_tables(asked: tuple, printed: tuple) -> None:
    assert published.score(*asked) == printed


def test_slips_of_table_9_are_not_taken_over() -> None:
    """Table 9 prints the 0-shot scores in two of its 4-shot rows."""
    assert published.score("OpenFlamingo-9B", "vizwiz", 4, "random") == (34.1, 0.7)
    assert published.score("OpenFlamingo-9B", "vizwiz", 0, "random") == (27.5, 0.2)
    assert published.score("OpenFlamingo-9B", "ok_vqa", 4, "rices") == (42.0, None)
    assert published.score("OpenFlamingo-9B", "ok_vqa", 0, "rices") == (38.3, None)
    assert sum("Table 9" in slip for slip in published.slips()) == 2


def quotients(model: str, mode: str) -> list[float]:
    other = published.counterpart(model) or ""
    pairs = [(published.score(model, t, n, mode), published.score(other, t, n)) for t in SEVEN for n in SHOTS]
    return [a[0] / b[0] for a, b in pairs if a and b]


# Rows of Figure 11: 0, 4, 8, 16, 32 shots.
FIGURE_11 = {
    ("OpenFlamingo-3B", "coco"): (1.03, 0.91, 0.95, 0.94, 0.94),
    ("OpenFlamingo-9B", "ok_vqa"): (0.85, 0.81, 0.82, 0.84, 0.83),
    ("OpenFlamingo-4B", "textvqa"): (0.70, 0.79, 0.66, 0.57, 0.46),
    ("OpenFlamingo-4B (Instruct)", "hateful_memes"): (0.99, 1.02, 1.07, 1.03, 0.98),
    ("OpenFlamingo-3B (Instruct)", "flickr30k"): (0.84, 0.82, 0.85, 0.86, 0.91),
}


@pytest.mark.parametrize("model, task", FIGURE_11)
def test_shares_of_flamingo_are_those_of_figure_11(model: str, task: str) -> None:
    at = SEVEN.index(task) * len(SHOTS)
    assert quotients(model, "random")[at : at + len(SHOTS)] == pytest.approx(FIGURE_11[model, task], abs=0.0075)


def test_aggregates_are_those_of_the_papers_text() -> None:
    means = {model: statistics.mean(quotients(model, "random")) for model in published.models() if "Open" in model}
    assert min(means.values()) == pytest.approx(0.80, abs=0.005)  # "between 80 - 89 %", abstract
    assert max(means.values()) == pytest.approx(0.89, abs=0.01)

    def share(model: str) -> float:
        return statistics.mean(
            (published.score(model, task, 32) or (0,))[0] / found.score
            for task in SEVEN
            if (found := published.fine_tuned(task))
        )

    assert share("OpenFlamingo-9B") == pytest.approx(0.62, abs=0.01)
    assert share("Flamingo-9B") == pytest.approx(0.72, abs=0.005)


def test_every_table_is_whole() -> None:
    assert len(published.models()) == 8
    for model in published.models():
        for mode in ("random", "rices") if "Open" in model else ("random",):
            assert all(published.score(model, task, shots, mode) for task in SEVEN for shots in SHOTS), (model, mode)


def test_what_is_not_published_is_none() -> None:
    assert published.score("Flamingo-80B", "coco", 4, "rices") is None
    assert published.score("OpenFlamingo-9B", "imagenet", 8, "rices") is None
    assert published.score("OpenFlamingo-9B", "coco", 5) is None
    assert published.score("OpenFlamingo-9B", "coco", 4, "balanced") is None
    assert published.score("Flamingo-9B", "visdial", 32) is None  # out of context
    assert published.score("Flamingo-9B", "rareact", 4) is None
    assert published.score("OpenFlamingo-9B", "my own task", 4) is None
    assert published.source("Flamingo-80B", "coco", "rices") is None
    assert published.fine_tuned("imagenet") is None and published.title("my own task") is None


@pytest.mark.parametrize(
    "given, meant",
    [
        ("openflamingo/OpenFlamingo-9B-vitl-mpt7b", "OpenFlamingo-9B"),
        ("/models/OpenFlamingo-3B-vitl-mpt1b-langinstruct/", "OpenFlamingo-3B (Instruct)"),
        ("OF-4B (I)", "OpenFlamingo-4B (Instruct)"),
        ("openflamingo-4b-instruct", "OpenFlamingo-4B (Instruct)"),
        ("of-9b", "OpenFlamingo-9B"),
        ("Fl-80B", "Flamingo-80B"),
        ("flamingo 3b", "Flamingo-3B"),
        ("flamingo-mini", None),
        ("OpenFlamingo", None),
    ],
)
def test_names(given: str, meant: str | None) -> None:
    assert published.find(given) == meant


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"'BLIP-2'.*OpenFlamingo-9B"):
        published.score("BLIP-2", "coco", 0)


def test_the_released_models_are_the_published_ones() -> None:
    from flamboyance.names import RELEASED

    found = [published.find(name) for name in RELEASED]
    assert None not in found and len(set(found)) == 5


@pytest.mark.parametrize("name", ["OK-VQA", "okvqa", "ok_vqa", "Ok Vqa"])
def test_task_names(name: str) -> None:
    assert published.task_name(name) == "ok_vqa" and published.title(name) == "OK-VQA"


def test_sources_say_what_was_measured() -> None:
    one = published.source("OpenFlamingo-9B", "vizwiz", "rices")
    assert one is not None
    assert (one.arxiv, one.table, one.split, one.metric) == ("2308.01390", "Table 12", "test-dev", "VQA accuracy")
    other = published.source("Flamingo-80B", "imagenet", "rices")
    assert other is not None and other.table == "Table 4" and other.arxiv == "2204.14198"
    assert published.counterpart("OpenFlamingo-4B") == "Flamingo-3B"
    assert published.counterpart("Flamingo-80B") == "Flamingo-80B"
    assert published.counterpart("flamingo-mini") is None
    assert published.imagenet("Flamingo-80B")[-1]["top_1"] == 77.3


def test_the_figures_are_packaged() -> None:
    for name in ("openflamingo", "flamingo", "fine_tuned"):
        assert files("flamboyance.reports").joinpath("published_scores", f"{name}.json").is_file()
