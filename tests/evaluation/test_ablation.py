"""Changed demonstrations: what each change does to a prompt, and what the report concludes of planted models."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flamboyance as fl
from flamboyance.cli import main
from flamboyance.evaluation import changes, metrics
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.results import read_rows
from flamboyance.evaluation.rices.feature_store import Features
from flamboyance.evaluation.task import Example, Task
from flamboyance.images import load_image
from flamboyance.mini import world
from flamboyance.mini.world.words import draw_words
from flamboyance.reports import ablation
from flamboyance.reports.ablation_figure import ablation_figures
from flamboyance.reports.evaluation_run import read_run
from flamboyance.reports.figures import draw as draw_figures
from flamboyance.reports.inspection import inspections
from flamboyance.reports.report import build
from tests.evaluation.answers.scripted_server import serving
from tests.evaluation.small_tasks import captions, questions
from tests.evaluation.test_any_model_page import learner

SHADES = {"ruby": 20, "jade": 90, "gold": 160, "opal": 230}


def stones(folder: Path, rows: int, seed: int, prefix: str = "") -> Path:
    """A file of grey pictures whose shade says the label, near enough."""
    random = np.random.default_rng(seed)
    (folder / f"p{prefix}").mkdir(parents=True)
    lines = ["image,label"]
    for i in range(rows):
        label = list(SHADES)[i % 4]
        shade = SHADES[label] + int(random.integers(-15, 16))
        Image.fromarray(np.full((6, 9, 3), shade, np.uint8)).save(folder / f"p{prefix}" / f"{i}.png")
        lines.append(f"p{prefix}/{i}.png,{label}")
    file = folder / f"{prefix}stones.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def shade(image) -> int:
    return image.getpixel((0, 0))[0]


def nearest(demonstrations, query):
    """Copies the answer of the demonstration whose image is most like the query's."""
    shown = [one for one in demonstrations if one.images]
    if not shown:
        return "unknown"
    return min(shown, key=lambda one: abs(shade(one.images[0]) - shade(query.images[0]))).answer


def blind(demonstrations, query):
    """Looks at no image: knows the query's label if it has been told what labels there are."""
    wanted = query.id[-1]  # a planted prior, which needs only the words
    said = {one.answer for one in demonstrations}
    guess = list(SHADES)[(int(query.id) - 1) % 4]
    return guess if guess in said and len(demonstrations) > 2 else wanted


def prompt_of(task: Task, shown=(0, 1, 2), shots=3) -> Prompt:
    return Prompt.of(task, 4, shown, shots)


def test_images_change_and_texts_stay(tmp_path):
    task = questions(tmp_path / "data")
    prompt = prompt_of(task)
    texts = [(one.asked, one.answer) for one in prompt.demonstrations]
    shown = [one.image for one in prompt.demonstrations]
    for change in changes.IMAGES:
        found = changes.changed(prompt, change, 0, tmp_path / "blank")
        assert [(one.asked, one.answer) for one in found.demonstrations] == texts and found.query == prompt.query
        images = found.demonstration_images
        assert found == changes.changed(prompt, change, 0, tmp_path / "blank")
        if change == "no_images":
            assert images == [] and found.text.count("<image>") == 1
        elif change == "blank_images":
            assert [np.asarray(load_image(image)).tolist() for image in images] == [[[[128] * 3] * 16] * 16] * 3
        elif change == "shuffled_images":
            assert sorted(images) == sorted(shown)
        else:
            assert len(set(images)) == 3 and not {*images} & {*shown, prompt.query.image}


def test_answers_change_and_images_stay(tmp_path):
    task = questions(tmp_path / "data")
    prompt = prompt_of(task)
    drawn = Counter()
    for seed in range(60):
        mixed = changes.changed(prompt, "shuffled_answers", seed, tmp_path)
        assert sorted(one.answer for one in mixed.demonstrations) == sorted(one.answer for one in prompt.demonstrations)
        random = changes.changed(prompt, "random_answers", seed, tmp_path)
        drawn.update(one.answer for one in random.demonstrations)
        for found in (mixed, random):
            assert found.images == prompt.images
            assert [one.asked for one in found.demonstrations] == [one.asked for one in prompt.demonstrations]
    assert set(drawn) == set(task.labels) and min(drawn.values()) > 30
    free = prompt_of(captions(tmp_path / "free"))
    answers = {one.answer for one in free.task.support}
    found = {
        one.answer for s in range(30) for one in changes.changed(free, "random_answers", s, tmp_path).demonstrations
    }
    assert found == answers
    without = changes.changed(prompt, "no_questions", 0, tmp_path)
    assert (
        "what is this" not in without.demonstrations_text
        and without.after_demonstrations == prompt.after_demonstrations
    )
    assert changes.of_task(task, 3) == list(changes.TITLES)
    assert changes.of_task(free.task, 3) == list(changes.TITLES)[:-1]


def test_places_are_drawn_evenly(tmp_path):
    """A model that copies the right demonstration is right by chance once they are shuffled."""
    prompt = prompt_of(captions(tmp_path / "data"))
    counts = Counter(
        tuple(one.image.name for one in changes.changed(prompt, "shuffled_images", seed, tmp_path).demonstrations)
        for seed in range(600)
    )
    assert len(counts) == 6 and min(counts.values()) > 60


def test_several_images_stay_together(tmp_path):
    task = captions(tmp_path / "data")
    support = [replace(one, further=(task.support[i - 1].image,)) for i, one in enumerate(task.support)]
    prompt = prompt_of(replace(task, support=support))
    pairs = {one.images for one in support}
    for change in ("shuffled_images", "other_images"):
        found = changes.changed(prompt, change, 1, tmp_path)
        assert {one.images for one in found.demonstrations} <= pairs and len(found.demonstration_images) == 6


def test_changes_that_change_nothing_are_left_out(tmp_path):
    task = captions(tmp_path / "data", support=3)
    with pytest.raises(ValueError, match="has none besides the 3"):
        changes.changed(prompt_of(task), "other_images", 0, tmp_path)
    fl.evaluate(task, nearest, shots=[1, 3], seeds=[0], ablate=True, output=tmp_path / "run")
    left_out = {n: {c for c in changes.TITLES if not list((tmp_path / "run").glob(f"*/{n}-*-0-{c}"))} for n in (1, 3)}
    assert left_out[3] == {"other_images", "no_questions"}
    assert left_out[1] == {"shuffled_images", "shuffled_answers", "no_questions"}  # one cannot change places
    with pytest.raises(ValueError, match="0 shots have none"):
        fl.evaluate(task, nearest, shots=[0], ablate=True, output=tmp_path / "run")


class Shades:
    """Stands for a tower: an image's feature is a bell around its shade."""

    def build(self, images, encoder, cache, **_) -> Features:
        import torch

        names = list(dict.fromkeys(map(str, images)))
        places = torch.linspace(0, 255, 64)
        rows = torch.stack([torch.exp(-((places - shade(load_image(name))) ** 2) / 800) for name in names])
        return Features([(rows / rows.norm(dim=1, keepdim=True)).half()], {n: i for i, n in enumerate(names)}, {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stones")
    asked, shown = stones(folder, 40, 0), stones(folder, 60, 1, "more")
    patch = pytest.MonkeyPatch()
    patch.setattr("flamboyance.evaluation.from_python.build", Shades().build)
    for model in (nearest, blind):
        fl.evaluate(
            asked, model, shots=[4], demonstrations=["balanced"], seeds=[0, 1], ablate=True, support=shown,
            output=folder / model.__name__, encoder=object(),
        )  # fmt: skip
    patch.undo()
    return folder


def found(folder: Path) -> ablation.Ablation:
    (one,) = ablation.ablations(read_run(folder))
    return one


def test_a_model_that_copies_the_nearest_demonstration_is_recognized(runs):
    one = found(runs / "nearest")
    assert one.zero == 0 and one.whole == 100  # balanced demonstrations show every label
    for name in changes.IMAGES:
        assert one.part(name).matters, name
    for name in ("shuffled_images", "other_images", "shuffled_answers", "random_answers"):
        assert 10 < one.part(name).score < 40, name  # chance is 25
    assert one.part("neighbours").score == 100 and one.part("majority").score == 25
    said = ablation.conclusion(one)
    assert (
        "images of the demonstrations carry 100 % of the gain" in said and "which answer is beside which image" in said
    )
    assert "The nearest neighbours' vote, without a model, scores as much: 100.0" in said


def test_a_model_that_ignores_images_is_recognized(runs):
    one = found(runs / "blind")
    assert one.whole == 100 and one.zero < 10
    for name in (*changes.IMAGES, "shuffled_answers"):
        assert one.part(name).share == 0 and one.part(name).negligible
    assert one.part("random_answers").matters
    said = ablation.conclusion(one)
    assert "images of the demonstrations change nothing here" in said and "whatever they belong to" in said


def test_shares_are_those_of_the_predictions(runs):
    """An independent computation from predictions.jsonl."""
    home, one = runs / "nearest" / "stones", found(runs / "nearest")

    def values(change: str, shots: int = 4) -> np.ndarray:
        cells = [read_rows(home / f"{shots}-balanced-{seed}{change}" / "predictions.jsonl") for seed in (0, 1)]
        return np.array([[100.0 * (row["answer"] in row["references"]) for row in cell] for cell in cells]).mean(0)

    zero, whole, less = values("", 0), values(""), values("-random_answers")
    part = one.part("random_answers")
    assert (part.score, part.difference) == (less.mean(), less.mean() - whole.mean())
    assert part.share == pytest.approx((whole.mean() - less.mean()) / (whole.mean() - zero.mean()))
    draws = np.random.default_rng(1).integers(0, len(zero), (4000, len(zero)))
    shares = (whole[draws].mean(1) - less[draws].mean(1)) / (whole[draws].mean(1) - zero[draws].mean(1))
    assert part.share_interval == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.03)


def test_the_report_has_the_table_and_the_sentence(runs, capsys):
    assert main(["report", str(runs / "nearest"), str(runs / "blind")]) == 0
    text = (runs / "nearest" / "report.md").read_text(encoding="utf-8")
    assert "## What in the demonstrations is used" in text
    for name in (*changes.TITLES.values(), "the most frequent answer, without a model"):
        assert (f"| {name} |" in text) == (name != "questions removed"), name
    assert "change nothing here" in text and "carry 100 % of the gain" in text
    assert "change nothing here" in capsys.readouterr().out.replace("\n", " ")
    page = (runs / "nearest" / "index.html").read_text(encoding="utf-8")
    assert "balanced, images shuffled" in page and "the nearest neighbours' vote, without a model" in page
    assert (runs / "nearest" / "ablation.png").is_file() and "ablation.png" in text
    assert "balanced, images" not in text.split("## What in")[0]  # other tables have unchanged demonstrations alone


def test_scores_of_unchanged_demonstrations_are_as_without_ablation(runs, tmp_path):
    shown = runs / "morestones.csv"
    plain = fl.evaluate(
        runs / "stones.csv", nearest, shots=[0, 4], demonstrations=["balanced"], seeds=[0, 1], support=shown,
        output=tmp_path,
    )  # fmt: skip
    assert plain == json.loads((runs / "nearest" / "scores.json").read_text(encoding="utf-8"))


def test_baselines_are_those_of_the_support_set(runs):
    rows = read_rows(runs / "nearest/stones/4-neighbours-0-baseline/predictions.jsonl")
    support = {}
    for i in range(60):
        support[str((runs / "pmore" / f"{i}.png").absolute())] = list(SHADES)[i % 4]
    for row in rows[:8]:
        asked = shade(load_image(row["image"]))
        voters = [one["image"] for one in row["demonstrations"]]
        others = [shade(load_image(one)) for one in support if one not in voters]
        furthest = max(abs(shade(load_image(one)) - asked) for one in voters)
        assert len(voters) == 4 and all(abs(other - asked) >= furthest - 1 for other in others)
        assert row["answer"] == Counter(support[one] for one in voters).most_common(1)[0][0]
        assert row["labels_by"] == "neighbours" and max(row["scores"], key=row["scores"].get) == row["answer"]
    majority = read_rows(runs / "nearest/stones/0-majority-0-baseline/predictions.jsonl")
    assert {row["answer"] for row in majority} == {"ruby"} and len(majority) == 40


def test_neighbours_of_several_images_are_alike_in_all(tmp_path, monkeypatch):
    """The first image says nothing; of the second, the shade says the label."""
    folder = stones(tmp_path, 16, 0).parent
    lines = [
        json.dumps({"images": ["p/0.png", f"p/{i}.png"], "label": list(SHADES)[i % 4]}) + "\n" for i in range(1, 16)
    ]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    monkeypatch.setattr("flamboyance.evaluation.from_python.build", Shades().build)
    options = {"shots": [2], "seeds": [0], "ablate": True, "output": tmp_path / "run", "encoder": object()}
    fl.evaluate(folder / "pairs.jsonl", last, **options)
    rows = read_rows(tmp_path / "run/pairs/2-neighbours-0-baseline/predictions.jsonl")
    assert [row["answer"] for row in rows] == [list(SHADES)[i % 4] for i in range(1, 16)]
    assert all(row["id"] not in [one["id"] for one in row["demonstrations"]] for row in rows)


def test_a_stopped_ablation_resumes(tmp_path):
    asked, calls = stones(tmp_path, 12, 0), []

    def stops(demonstrations, query):
        calls.append(query.id)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return nearest(demonstrations, query)

    options = {"shots": [2], "seeds": [0], "ablate": True, "output": tmp_path / "run", "name": "it", "batch_size": 1}
    with pytest.raises(KeyboardInterrupt):
        fl.evaluate(asked, stops, **options)
    fl.evaluate(asked, stops, **options)
    assert len(calls) == 12 * (2 + 6) + 1  # zero shots, whole demonstrations, six changes; and the one that was lost


def test_changes_of_fewer_seeds_are_compared_on_these(tmp_path):
    """A model that looks at no image: images removed change nothing, whatever the other seeds score."""
    asked, options = stones(tmp_path, 24, 0), {"output": tmp_path / "run", "shots": [0, 3]}
    values = fl.evaluate(asked, last, seeds=[0, 1, 2], **options)["stones"]["random"]["3"]
    assert len(set(values["seeds"].values())) > 1
    fl.evaluate(asked, last, seeds=[0], ablate=True, orders=1, **options)
    one = found(tmp_path / "run")
    assert one.whole == pytest.approx(values["mean"])
    for name in ("no_images", "other_images"):
        part = one.part(name)
        assert part.score == values["seeds"]["0"] and (part.difference, part.interval) == (0, (0, 0))
        assert part.seeds == "1 of 3 seeds"
    assert one.part("majority").seeds == ""  # the same for all seeds
    (orders,) = [each.orders for each in inspections(read_run(tmp_path / "run")) if each.orders]
    assert orders.scores[0] == values["seeds"]["0"] and len(orders.scores) == 2
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "| images removed (1 of 3 seeds) |" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


def last(demonstrations, query):
    return demonstrations[-1].answer


def test_seeds_with_queries_of_their_own_are_compared(tmp_path):
    asked = stones(tmp_path, 24, 0)
    fl.evaluate(
        asked, nearest, output=tmp_path / "run", shots=[4], seeds=[0, 1], queries=9, protocol="openflamingo",
        ablate=True,
    )  # fmt: skip
    one, home = found(tmp_path / "run"), tmp_path / "run" / "stones"
    assert one.why_not is None and one.queries == 18 and one.skipped == ()
    for change, score in (("", one.whole), ("-random_answers", one.part("random_answers").score)):
        cells = [read_rows(home / f"4-random-{seed}{change}" / "predictions.jsonl") for seed in (0, 1)]
        assert {row["id"] for row in cells[0]} != {row["id"] for row in cells[1]}
        assert score == pytest.approx(np.mean([row["score"] for cell in cells for row in cell]))
    majority = read_rows(home / "0-majority-0-baseline" / "predictions.jsonl")
    assert one.part("majority").seeds == "1 of 2 seeds"
    assert one.part("majority").score == np.mean([row["score"] for row in majority])


def test_what_cannot_be_compared_is_said(tmp_path):
    asked = stones(tmp_path, 12, 0)
    fl.evaluate(asked, nearest, output=tmp_path / "run", shots=[2], seeds=[0], ablate=True)
    file = tmp_path / "run" / "stones" / "0-random-0" / "predictions.jsonl"
    file.write_text("".join(f"{json.dumps(row | {'score': None})}\n" for row in read_rows(file)), encoding="utf-8")
    assert "no values" in found(tmp_path / "run").why_not
    assert main(["report", str(tmp_path / "run")]) == 0
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "2 shots: not compared: the metric has no values of single queries" in text
    assert not (tmp_path / "run" / "ablation.png").exists()


def test_every_ablation_has_a_panel(tmp_path, monkeypatch):
    one = ablation.Ablation("t", "random", 4, 9, 20.0, 80.0, (50.0, 70.0), (), ())
    fl.evaluate(stones(tmp_path, 4, 0), nearest, output=tmp_path / "run", shots=[0, 1], seeds=[0])
    runs = build([read_run(tmp_path / "run")])
    many = replace(runs, ablations=(tuple(replace(one, shots=n) for n in range(1, 15)),))
    panels = [len(figure.axes) for figure in ablation_figures(many)]
    assert panels == [12, 2] and ablation_figures(runs) == []
    assert {"ablation.png", "ablation-2.png"} <= {name for name, _ in draw_figures(many, tmp_path)}


def test_the_area_under_a_curve_is_divided_too(tmp_path):
    task = questions(tmp_path / "data", queries=20, labels=("yes", "no"))
    task = replace(task, metric=metrics.roc_auc("yes", ("yes", "no")), permutations=1)

    def half(demonstrations, query):
        shown = sum(bool(one.images) for one in demonstrations)
        right = task.queries[int(query.id[1:])].references[0]
        sure = 3.0 if shown else 0.0
        return {label: sure * (label == right) for label in ("yes", "no")}

    fl.evaluate(task, half, shots=[2], seeds=[0], ablate=True, output=tmp_path / "run")
    one = found(tmp_path / "run")
    assert (one.zero, one.whole, one.part("no_images").share) == (50, 100, 1.0)
    assert one.part("majority").score == 50 and "carry 100 % of the gain" in ablation.conclusion(one)


def test_the_command_and_a_flamingo(tmp_path, capsys):
    asked = stones(tmp_path, 8, 0)
    assert (
        main(["evaluate", str(asked), "--shots", "2", "--seeds", "0", "--ablate", "--output", str(tmp_path / "r")]) == 0
    )
    cells = {path.name for path in (tmp_path / "r" / "stones").iterdir()}
    names = {f"2-random-0-{change}" for change in changes.TITLES if change != "no_questions"}
    assert cells == {"0-random-0", "2-random-0", "0-majority-0-baseline", "2-neighbours-0-baseline", *names}
    assert Example("a", Path("b.png"), "c").images == (Path("b.png"),)


def test_a_served_model(tmp_path, capsys):
    asked = stones(tmp_path, 12, 0)
    with serving(learner) as server:
        arguments = ["--model", server.url, "--shots", "3", "--seeds", "0", "--ablate", "--labels-by", "text"]
        assert main(["evaluate", str(asked), *arguments, "--output", str(tmp_path / "run")]) == 0
        pictures = [json.dumps(body).count('"image_url"') // 2 for body in server.requests]
    assert 70 < len(pictures) <= 12 * 8 + 2  # an order that is drawn again is not asked again
    assert pictures.count(1) == 24  # zero shots, and demonstrations without images
    assert "needs a vision tower: --tower" in capsys.readouterr().err
    assert {one.name for one in found(tmp_path / "run").baselines} == {"majority"}
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "What in the demonstrations is used" in capsys.readouterr().out


def test_demonstrations_that_add_nothing_may_still_distract(tmp_path):
    asked = stones(tmp_path, 24, 0)

    def distracted(demonstrations, query):
        """Knows the answer, unless the demonstrations are wrong."""
        right = list(SHADES)[(int(query.id) - 1) % 4]
        wrong = [one for one in demonstrations if one.images and nearest([one], query) != _label(one.images[0])]
        return wrong[0].answer if wrong else right

    for model, name in ((distracted, "distracted"), (lambda d, q: list(SHADES)[(int(q.id) - 1) % 4], "knowing")):
        fl.evaluate(asked, model, name=name, shots=[3], seeds=[0], ablate=True, output=tmp_path / name)
    said = ablation.conclusion(found(tmp_path / "distracted"))
    assert "nothing clear to zero shots" in said and "the score is lower with" in said and "answers random (-" in said
    assert "No change of them lowers the score clearly." in ablation.conclusion(found(tmp_path / "knowing"))


def _label(image) -> str:
    return min(SHADES, key=lambda label: abs(SHADES[label] - shade(image)))


@pytest.mark.slow
def test_the_embedded_model_learns_made_up_words_from_the_images(tmp_path):
    """By construction, the pairs of image and word carry everything: with images shuffled, chance is left."""
    rng, words = np.random.default_rng(5), draw_words(np.random.default_rng(3), 2, "test")
    for split, rows in (("shown", 40), ("asked", 64)):
        lines = ["image,label"]
        for i in range(rows):
            kind = {"color": ("red", "blue")[i % 2], "shape": ("circle", "square")[i % 2]}
            (tmp_path / split).mkdir(exist_ok=True)
            world.picture(world.scene(rng, 1, **kind)).save(tmp_path / split / f"{i}.png")
            lines.append(f"{split}/{i}.png,{words[i % 2]}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ["--support", str(tmp_path / "shown.csv"), "--demonstrations", "balanced", "--shots", "4", "--ablate"]
    arguments += ["--seeds", "0,1", "--output", str(tmp_path / "run")]
    assert main(["evaluate", str(tmp_path / "asked.csv"), *arguments]) == 0
    one = found(tmp_path / "run")
    assert one.gain_interval[0] > 0 and one.whole > 75
    for name in ("shuffled_images", "shuffled_answers", "random_answers"):
        assert 35 < one.part(name).score < 65 and one.part(name).matters, name
    assert one.part("neighbours").score > 95
    assert "and it matters which answer is beside which image" in ablation.conclusion(one)
