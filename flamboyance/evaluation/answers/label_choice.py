"""Which of a task's labels a served model chose: by the log-probabilities of its tokens, or by its text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

EDGE = " \t\r\n\"'`*._:"  # what a model may write before or after a label
SHORT = 2  # letters of a label that may number an answer, as in "B. A dog" and "10) ten"
LEAST = 1e-6  # the least probability that a finished label is given, where nothing more is known


def matched(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text gives; None if it gives none, or several.

    The text may be the label, in any case and with punctuation around it; or begin with a short one and one of ".):",
    as in "B. A dog"; or hold it as a word. Of labels within each other ("dog", "hot dog") the longest counts. A single
    letter counts as a word only in its own case: "A" is not in "a cat".
    """
    if text in labels:
        return text
    folded = _folded(labels)
    if (plain := text.strip(EDGE).casefold()) in folded:
        return folded[plain]
    words, written = text.casefold(), text
    longest_first = sorted(filter(None, folded), key=len, reverse=True)
    for name in longest_first:
        if len(name) <= SHORT and re.match(rf"[\s\"'(*]*{re.escape(name)}\s*[.):]", words):
            return folded[name]
    found = set()
    for name in longest_first:
        pattern = rf"(?<!\w){re.escape(folded[name].strip())}(?!\w)"
        if len(name) == 1:
            seen = re.search(pattern, written)
        else:
            folded_pattern = rf"(?<!\w){re.escape(name)}(?!\w)"
            seen = re.search(folded_pattern, words)
            words = re.sub(folded_pattern, "\0", words)
            written = re.sub(pattern, "\0", written, flags=re.IGNORECASE)
        if seen:
            found.add(folded[name])
    return found.pop() if len(found) == 1 else None


def schema(labels: Sequence[str]) -> dict[str, Any]:
    """The `response_format` that lets a server write nothing but `{"label": …}` with one of the labels."""
    content = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(labels)}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": content}}


def from_schema(text: str, labels: Sequence[str]) -> str | None:
    """The label in an answer under `schema`; None if the server did not follow it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    label = found.get("label") if isinstance(found, dict) else None
    return label if isinstance(label, str) and label in labels else None


def ranked(positions: Sequence[Any], labels: Sequence[str]) -> list[float] | None:
    """The log-probability of each label, from the alternatives that a server lists for each token of its answer.

    A label's probability is that of the answer up to the token where the two part, times that of the alternatives there
    that go on with the label. Labels that begin with the same alternative, other than the one written, cannot be told
    apart and get the same value. A label that no alternative begins gets that of the least likely one, which is more
    than it has.

    Args:
        positions: OpenAI's `choices[0].logprobs.content`: of each token its text, `logprob` and `top_logprobs`.

    Returns:
        None if no alternative begins a label, or the answer begins one and goes on otherwise ("A banana" begins
        "apple"): it is about something else. None too if labels differ in case alone.
    """
    names = list(_folded(labels))
    if any(name != name.casefold() for name in names):
        return None
    alive, scores = list(names), dict[str, float]()
    written, so_far, least, seen = "", 0.0, 0.0, False
    for position in positions:
        token, logprob, alternatives = _read(position)
        if not alternatives:
            break
        after = [(_begun(written + one), p) for one, p in alternatives.items()]
        following = _begun(written + token)
        staying = [name for name in alive if name.startswith(following)]
        if following:
            least = so_far + min(alternatives.values())
            for name in alive:
                mass = _mass(name, alive, _begun(written), after)
                seen = seen or mass is not None
                if name not in staying:
                    scores[name] = least if mass is None else so_far + mass
            alive = staying
        written, so_far = written + token, so_far + logprob
        if len(alive) < 2:
            break
    answer = _begun("".join(_read(position)[0] for position in positions))
    if alive and not any(name.startswith(answer) or answer.startswith(name) for name in alive):
        return None
    for name in alive:  # the one that is left; or those that the answer ended with, or within
        scores[name] = so_far if len(alive) == 1 or _begun(written) == name else least
    return [scores[name] for name in names] if seen else None


def _mass(name: str, alive: Sequence[str], before: str, after: Sequence[tuple[str, float]]) -> float | None:
    """The log-probability of the alternatives that go on with a label; None if there are none.

    Args:
        before: the answer so far.
        after: the answer with each alternative, and its log-probability.
    """
    longer = [other for other in alive if other != name and other.startswith(name)]
    if before and before == name:  # finished: all that does not go on with a longer label
        rest = 1.0 - sum(math.exp(p) for text, p in after if any(_fits(text, other) for other in longer))
        return math.log(max(LEAST, rest))
    # "hot d" begins "hot dog" and gives "hot" whole: it counts for the longer one.
    going = [p for text, p in after if _fits(text, name) and not _beyond(text, name, longer)]
    return math.log(sum(map(math.exp, going))) if going else None


def _fits(text: str, name: str) -> bool:
    """Whether a text begins a label, or gives it whole."""
    return bool(text) and (name.startswith(text) or (text.startswith(name) and not text[len(name)].isalnum()))


def _beyond(text: str, name: str, longer: Sequence[str]) -> bool:
    """Whether a text goes on behind the end of a label, with a longer label."""
    return len(text) > len(name) and any(_fits(text, other) for other in longer)


def _begun(text: str) -> str:
    return text.lstrip(EDGE).casefold()


def _read(position: Any) -> tuple[str, float, dict[str, float]]:
    """Text and log-probability of a token, and of its alternatives, itself among them; no alternatives if the server
    lists none."""
    if not isinstance(position, dict):
        return "", 0.0, {}
    listed = position.get("top_logprobs")
    found = {}
    for one in [*(listed if isinstance(listed, list) else []), position]:
        if isinstance(one, dict) and isinstance(one.get("token"), str) and isinstance(one.get("logprob"), int | float):
            found[one["token"]] = max(float(one["logprob"]), -1000.0)  # some servers write -9999 for "none"
    token = position.get("token")
    if not listed or not isinstance(token, str) or token not in found:
        return "", 0.0, {}
    return token, found[token], found


def _folded(labels: Sequence[str]) -> dict[str, str]:
    """Labels by their text without case; by the text itself if two differ in nothing else."""
    folded = {label.strip().casefold(): label for label in labels}
    return folded if len(folded) == len(labels) else {label: label for label in labels}
