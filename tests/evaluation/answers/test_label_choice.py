"""The label that a served model chose: by the log-probabilities of its tokens, confined to labels, or in its text."""

import hashlib
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from flamboyance.evaluation import metrics, shots
from flamboyance.evaluation.answers.endpoint import EndpointError
from flamboyance.evaluation.answers.label_choice import from_schema, matched, ranked
from flamboyance.evaluation.prompts import Prompt
from tests.evaluation.answers.scripted_server import chat, serving
from tests.evaluation.answers.test_endpoint import endpoint, evaluated, rows
from tests.evaluation.small_tasks import questions

LABELS = ("yes", "no", "a red circle")


@pytest.mark.parametrize(
    "text, label",
    [
        ("yes", "yes"),
        (" Yes.\n", "yes"),
        ('"A red circle"', "a red circle"),
        ("It is a red circle, I think", "a red circle"),
        ("yes or no", None),
        ("yesterday", None),
        ("", None),
        ("nothing", None),
    ],
)
def test_matched(text, label):
    assert matched(text, LABELS) == label


def test_the_longest_of_labels_within_each_other_counts():
    assert matched("this is a hot dog!", ("dog", "hot dog")) == "hot dog"
    assert matched("a dog", ("dog", "hot dog")) == "dog"
    assert matched("a dog beside a hot dog", ("dog", "hot dog")) is None
    assert matched("A", ("a", "A")) == "A" and matched("c++", ("c", "c++")) == "c++"


def test_from_schema():
    assert from_schema('{"label": "no"}', LABELS) == "no"
    for text in ("no", '{"label": "maybe"}', "[1]", '{"label": ["no"]}'):
        assert from_schema(text, LABELS) is None


def positions(answer, model, k=20):
    """The tokens of an answer, each with the k likeliest alternatives that a model gives after those before."""
    found = []
    for i, token in enumerate(answer):
        after = sorted(model(answer[:i]).items(), key=lambda pair: -pair[1])[:k]
        listed = [{"token": one, "logprob": math.log(p)} for one, p in after]
        found.append({"token": token, "logprob": math.log(model(answer[:i])[token]), "top_logprobs": listed})
    return found


VOCABULARY = ("a", " red", " blue", " circle", " square", "dog", " hot", ".", "<end>")


def random_model(seed):
    def model(before):
        random = np.random.default_rng([seed, *(VOCABULARY.index(token) for token in before)])
        return dict(zip(VOCABULARY, random.dirichlet(np.ones(len(VOCABULARY))), strict=True))

    return model


@pytest.mark.parametrize("seed", range(30))
def test_ranks_equal_the_true_probabilities_where_labels_part(seed):
    """Each of four labels is a path in a tree of tokens. The probability of reaching it, up to the token where it parts
    from the answer, is computed here by walking the whole tree."""
    model = random_model(seed)
    paths = {"a red circle": ("a", " red", " circle"), "a red square": ("a", " red", " square"),
             "a blue circle": ("a", " blue", " circle"), "dog": ("dog",)}  # fmt: skip
    for answer in paths.values():
        found = ranked(positions(answer, model), list(paths))
        for label, path in paths.items():
            if path == answer:
                others = [sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(path, o, strict=False)))
                          for name, o in paths.items() if name != label]  # fmt: skip
                steps = max(others) + 1
            else:
                steps = sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(path, answer, strict=False))) + 1
            expected = sum(math.log(model(path[:i])[path[i]]) for i in range(steps))
            assert found[list(paths).index(label)] == pytest.approx(expected), (label, answer)


def one(token, **alternatives):
    listed = [{"token": name, "logprob": math.log(p)} for name, p in alternatives.items()]
    return {"token": token, "logprob": math.log(alternatives[token]), "top_logprobs": listed}


def test_alternatives_of_one_label_are_added_up_and_a_missing_label_is_least():
    first = {"token": "Yes", "logprob": math.log(0.4), "top_logprobs": [
        {"token": "Yes", "logprob": math.log(0.4)}, {"token": " no", "logprob": math.log(0.3)},
        {"token": "No", "logprob": math.log(0.25)}, {"token": "Perhaps", "logprob": math.log(0.05)},
    ]}  # fmt: skip
    assert np.exp(ranked([first], LABELS)).tolist() == pytest.approx([0.4, 0.55, 0.05])


def test_a_label_that_begins_another_gets_what_does_not_go_on():
    found = ranked([one("hot", hot=0.9, cold=0.1), one("<end>", **{"<end>": 0.7, " dog": 0.3})], ("hot", "hot dog"))
    assert np.exp(found).tolist() == pytest.approx([0.9 * 0.7, 0.9 * 0.3])


def test_quotes_and_spaces_before_the_answer_are_passed_over():
    found = ranked([one('"', **{'"': 0.5, "x": 0.5}), one("no", no=0.8, yes=0.2)], LABELS)
    assert np.exp(found).tolist() == pytest.approx([0.5 * 0.2, 0.5 * 0.8, 0.5 * 0.2])


def test_an_answer_about_something_else_has_no_ranks():
    assert ranked([one("The", The=0.9, A1=0.1)], ("yes", "no")) is None
    assert ranked([], LABELS) is None
    assert ranked([{"token": "yes", "logprob": -1.0, "top_logprobs": []}], LABELS) is None
    assert ranked([None, "x"], LABELS) is None
    assert ranked([one("a", a=0.9, A=0.1)], ("a", "A")) is None  # not told apart


def test_an_answer_that_begins_a_label_and_goes_on_otherwise_has_no_ranks():
    fruits = ("apple", "banana", "cherry")
    first = one("A", A=0.6, b=0.25, c=0.1)
    assert ranked([first, one(" banana", **{" banana": 0.95, " cherry": 0.05}), one(".", **{".": 1.0})], fruits) is None
    for rest in ("pple", "pples", "p"):  # finished, gone beyond, cut off
        found = ranked([first, one(rest, **{rest: 1.0})], fruits)
        assert np.exp(found).tolist() == pytest.approx([0.6, 0.25, 0.1])


# Through a server ----------------------------------------------------------------------------------------------------


def spoken(label):
    listed = [{"token": name, "logprob": math.log(0.9 if name == label else 0.05)} for name in ("yes", "no", "a")]
    return {"content": [{"token": label, "logprob": math.log(0.9), "top_logprobs": listed}]}


def server_of(ways):
    """Answers "no" to every question, in the ways that it offers."""

    def answer(body):
        if "logprobs" in body and "logprobs" in ways:
            assert body["logprobs"] is True and body["top_logprobs"] == 20
            return chat("no", logprobs=spoken("no"))
        if "response_format" in body and "schema" in ways:
            labels = body["response_format"]["json_schema"]["schema"]["properties"]["label"]["enum"]
            assert labels == [one for one in LABELS if one in labels]
            return chat(json.dumps({"label": "no"}))
        return "No, I think."

    return serving(answer)


@pytest.mark.parametrize("refuses", [False, True], ids=["ignored", "refused"])
@pytest.mark.parametrize("ways", [("logprobs", "schema"), ("schema",), ()], ids=["logprobs", "schema", "text"])
def test_the_first_way_that_the_server_offers(ways, refuses, tmp_path):
    task = questions(tmp_path / "data")
    way = (*ways, "text")[0]
    with server_of(ways) as server:
        if refuses:
            options = {"logprobs": "logprobs", "schema": "response_format"}
            server.refused = {options[one]: f"unknown {one}" for one in options if one not in ways}
        found = evaluated(task, endpoint(server, tmp_path), tmp_path / "run")
        tried = ("logprobs", "schema", "text").index(way)
        assert server.sent == 9 + tried  # what it does not offer is asked for once
        for body in server.requests[tried:]:
            first = body["messages"][0]["content"][-1]["text"]
            assert first.startswith("Answer with one of: yes, no, a red circle.\n") == (way != "schema")
    assert {row["answer"] for row in found.values()} == {"no"} and {row["labels_by"] for row in found.values()} == {way}
    for row in found.values():
        if way == "logprobs":
            assert np.exp([row["scores"][label] for label in LABELS]).tolist() == pytest.approx([0.05, 0.9, 0.05])
        else:
            assert row["scores"] is None
    score = json.loads((tmp_path / "run" / "questions" / "2-random-0" / "score.json").read_text(encoding="utf-8"))
    assert score["labels_by"] == {way: 9} and score["value"] == pytest.approx(100 * 4 / 9)


def test_a_way_that_is_asked_for_must_be_offered(tmp_path):
    task = questions(tmp_path / "data")
    with server_of(()) as server:
        for way in ("logprobs", "schema"):
            with pytest.raises(EndpointError, match="--labels-by"):
                evaluated(task, endpoint(server, labels_by=way), tmp_path / way)
        found = evaluated(task, endpoint(server, labels_by="text"), tmp_path / "text")
    assert {row["labels_by"] for row in found.values()} == {"text"}


def test_a_text_without_a_label_is_wrong(tmp_path):
    with serving(lambda body: "who knows") as server:
        found = evaluated(questions(tmp_path / "data"), endpoint(server, labels_by="text"), tmp_path / "run")
    assert {row["answer"] for row in found.values()} == {"who knows"} and {r["score"] for r in found.values()} == {0.0}


def test_roc_auc_needs_log_probabilities(tmp_path):
    task = replace(questions(tmp_path / "data"), labels=("yes", "no"), metric=metrics.roc_auc("yes", ("yes", "no")))
    with server_of(("schema",)) as server, pytest.raises(ValueError, match="ROC AUC"):
        evaluated(task, endpoint(server), tmp_path / "schema")
    with server_of(("logprobs",)) as server:
        found = evaluated(task, endpoint(server), tmp_path / "logprobs")
    assert all(set(row["scores"]) == {"yes", "no"} for row in found.values())


def test_log_probabilities_are_averaged_over_orders_of_the_demonstrations(tmp_path):
    def answer(body):  # as the first demonstration
        return chat(first := body["messages"][1]["content"], logprobs=spoken(first))

    task = questions(tmp_path / "data", permutations=2)
    with serving(answer) as server:
        found = evaluated(task, endpoint(server, tmp_path), tmp_path / "run")
        assert server.sent == 18
    mixed = 0
    for row in found.values():
        shown = [one["answer"] for one in row["demonstrations"]]
        for label in ("yes", "no"):
            expected = np.mean([math.log(0.9 if label == one else 0.05) for one in shown])
            assert row["scores"][label] == pytest.approx(expected)
        mixed += len(set(shown)) == 2
    assert mixed


@pytest.mark.parametrize("permutations", [1, 2])
def test_prompts_are_asked_ahead_once_and_answered_by_their_own_replies(permutations, tmp_path):
    """Prompts of earlier cells are gone, and Python gives their ids to later ones."""

    def answer(body):
        content = hashlib.sha256(json.dumps(body["messages"]).encode()).digest()
        return chat(said := ("yes", "no")[content[0] % 2], logprobs=spoken(said))

    task = questions(tmp_path / "data", permutations=permutations)
    seeds = tuple(range(8))
    with serving(answer) as server:
        evaluated(task, endpoint(server, concurrency=2), tmp_path / "run", seeds=seeds, batch_size=2)
        assert server.sent == 9 * len(seeds) * permutations + 1  # with the one that found out the way
        alone = endpoint(server, concurrency=1)
        for seed in seeds:
            found = rows(tmp_path / "run" / "questions" / f"2-random-{seed}")
            for query, shown in enumerate(shots.select(task, 2, "random", seed)):
                prompt = Prompt.of(task, query, shown, 2)
                orders = ((0, 1), (1, 0))[:permutations]
                scores = np.mean([alone.choose([prompt.in_order(one)])[0].scores for one in orders], axis=0)
                expected = dict(zip(task.labels, scores, strict=True))
                assert found[prompt.query.id]["scores"] == pytest.approx(expected)
        alone.close()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("It is a cat", None),
        ("I cannot tell from a picture", None),
        ("B. It is a cat", "B"),
        ("B) a dog", "B"),
        ("(B) A dog", "B"),
        ("b: a dog", "B"),
        ("The answer is B, a dog", "B"),
        ("a", "A"),
        ("A or B", None),
        ("10. It is a cat", "10"),
        ("Vitamin A", "vitamin A"),
    ],
)
def test_labels_of_a_letter_are_no_articles(text, label):
    assert matched(text, ("A", "B", "C", "D", "10", "1", "vitamin A")) == label
