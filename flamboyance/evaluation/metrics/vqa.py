"""VQA accuracy: the share of annotators who gave the predicted answer (Antol et al., arXiv:1505.00468)."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence

from flamboyance import checks

ENOUGH = 3  # an answer is fully right if so many annotators gave it
ALWAYS, OFFICIAL, PREDICTION = "always", "official", "prediction"  # what is normalized
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"none": "0"} | {
    word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
ARTICLES = {"a", "an", "the"}
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The official script passes `re.UNICODE` to `sub` as the number of replacements: it removes 32 periods at most.
_PERIODS = int(re.UNICODE)

# Contractions, which answers may write without an apostrophe. Each is recognized with one of its apostrophes missing:
# "dont"; "couldnt've" and "couldn'tve", but not "couldntve".
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = (
    {"somebody'd": "somebodyd"}
    | {  # the official list has this one the wrong way round
        whole[:i] + whole[i + 1 :]: whole for whole in _CONTRACTIONS for i, letter in enumerate(whole) if letter == "'"
    }
)


def normalize_answer(answer: str) -> str:
    """An answer as VQA accuracy compares it: without punctuation, case, articles; number words as digits."""
    answer = _one_line(answer)
    bare = answer
    for mark in PUNCTUATION:
        # A mark beside a space is deleted, as is every mark if a number has a comma; any other becomes a space.
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        bare = bare.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(answer) else " ")
    bare = _PERIOD.sub("", bare, count=_PERIODS)
    words = (NUMBERS.get(word, word) for word in bare.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def submitted_answer(answer: str) -> str:
    """An answer as it is sent to a test server: normalized, unless that leaves nothing of it ("A", "...")."""
    return normalize_answer(answer) or answer


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(answers: Sequence[str], prediction: str, normalize: str = ALWAYS) -> float:
    """The VQA accuracy of one question, from 0 to 1.

    Each annotator in turn is left out; the prediction earns min(1, annotators among the others who said it / 3); the
    mean over annotators counts. So an answer that 1, 2, 3 or 4 of ten gave is worth 0.3, 0.6, 0.9 or 1.

    Args:
        answers: what each annotator said, usually ten.
        prediction: the answer to judge.
        normalize: "always": the answers and the prediction are compared without punctuation, case and articles, as
            open_flamingo 2.0.1 and MMF's evaluator of TextVQA do. "official": only if the annotators gave different
            answers. Where all gave the same one, the prediction must equal it, but for white space: "Yes" does not
            match ten times "yes". VQAv2's own script, which also runs on its test server, does this. "prediction": the
            prediction alone, as VizWiz's own script does.

    Raises:
        ValueError: there is no answer, an argument has another type, or `normalize` is none of the three.
    """
    _check(answers, prediction)
    if normalize not in (ALWAYS, OFFICIAL, PREDICTION):
        raise ValueError(f"normalize={normalize!r}: expected {ALWAYS!r}, {OFFICIAL!r} or {PREDICTION!r}")
    form = normalize_answer
    if normalize == PREDICTION:
        prediction, form = normalize_answer(prediction), _one_line
    if normalize == OFFICIAL and len({_one_line(answer) for answer in answers}) == 1:
        form = _one_line
    return _accuracy(answers, list(range(len(answers))), prediction, form)


def vqa_accuracy_without_ids(answers: Sequence[str], confidences: Sequence[str], prediction: str) -> float:
    """VQA accuracy as OpenFlamingo computes it for VizWiz, for its published numbers. It is too low.

    VizWiz's annotations lack the number of each answer, by which the script identifies the annotator to leave out. It
    leaves out everyone who gave the same answer with the same confidence. So an answer that all ten gave with the same
    confidence is worth 0.

    Args:
        answers: what each annotator said.
        confidences: "yes", "maybe" or "no" of each.
        prediction: the answer to judge.
    """
    _check(answers, prediction)
    confidences = checks.listed("confidences", confidences, "texts", "['yes', 'maybe']")
    if len(confidences) != len(answers):
        raise ValueError(f"{len(answers)} answers have {len(confidences)} confidences: expected one for each answer")
    return _accuracy(answers, confidences, prediction, normalize_answer)


def _check(answers: Sequence[str], prediction: str) -> None:
    if not checks.listed("answers", answers, "texts, one per annotator", "['yes']"):
        raise ValueError("answers is empty; expected the answer of each annotator")
    for answer in answers:
        checks.text("an answer", answer)
    checks.text("prediction", prediction)


def _accuracy(answers: Sequence[str], tags: Sequence[Hashable], prediction: str, form: Callable[[str], str]) -> float:
    """VQA accuracy; with an annotator, all who have the same answer and the same tag are left out.

    Args:
        form: an answer -> the text that is compared.
    """
    annotators = [(form(answer), tag) for answer, tag in zip(answers, tags, strict=True)]
    predicted = form(prediction)
    earned = [
        min(1, sum(other != one and other[0] == predicted for other in annotators) / ENOUGH) for one in annotators
    ]
    return sum(earned) / len(earned)
