"""The page's cards: a set of demonstrations with the queries after them."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape as e

from flamboyance.demo.results import AnsweredQuery, AnsweredSet, Reply
from flamboyance.demo.tasks import Example

WORD_CLASSES = ("first", "second")


def set_card(number: int, part: AnsweredSet, shots: Sequence[int]) -> str:
    """One set: its demonstrations in the boxes in which they are added, then its queries with every reply."""
    queries = "\n".join(_query(query, part.candidates) for query in part.queries)
    return f"""<article class="set">
<h3>{number + 1}</h3>
<div class="shown">{_demonstrations(part, shots)}</div>
<div class="asked">
{queries}
</div>
</article>"""


def _demonstrations(part: AnsweredSet, shots: Sequence[int]) -> str:
    boxes, before = [], 0
    for count in shots:
        added = part.demonstrations[before:count]
        if added:
            label = f"with {count} shot{'s' * (count != 1)}" + (", also" if before else "")
            figures = "".join(_demonstration(one, part.candidates) for one in added)
            boxes.append(f'<div class="more"><span>{label}</span><div>{figures}</div></div>')
        before = max(before, count)
    return "".join(boxes)


def _demonstration(one: Example, candidates: list[str] | None) -> str:
    question = "" if one.question is None else f"{e(one.question)}<br>"
    answer = f"<strong>{e(one.answer)}</strong>" if candidates is None else _word(one.answer, candidates)
    return (
        f'<figure><img src="{e(one.image)}" alt="demonstration: {e(one.answer)}" loading="lazy" width="64" height="64">'
        f"<figcaption>{question}{answer}</figcaption></figure>"
    )


def _word(word: str, candidates: list[str]) -> str:
    """A made-up word in its colour."""
    kind = WORD_CLASSES[candidates.index(word) % len(WORD_CLASSES)] if word in candidates else ""
    return f'<span class="{kind}">{e(word)}</span>'


def _query(query: AnsweredQuery, candidates: list[str] | None) -> str:
    one = query.example
    question = "" if one.question is None else f'<p class="label">question</p><p>{e(one.question)}</p>'
    truth = e(one.answer) if candidates is None else _word(one.answer, candidates)
    choice = "" if candidates is None else f'<p class="label">of {" and ".join(map(e, candidates))}</p>'
    return f"""<div class="query">
<img src="{e(one.image)}" alt="query: {e(one.answer)}" loading="lazy" width="64" height="64">
<div>{question}<p class="label">true answer</p><p><strong>{truth}</strong></p>{choice}</div>
<ul class="replies">{_replies(query, candidates)}</ul>
</div>"""


def _replies(query: AnsweredQuery, candidates: list[str] | None) -> str:
    """A line for each different reply, with the shots after which it came: `✓ 2, 4, 8  a red ring`."""
    together: dict[Reply, list[int]] = {}
    for count, reply in sorted(query.replies.items()):
        together.setdefault(reply, []).append(count)
    lines = ['<li class="label"><span></span><span>shots</span><span>answer</span></li>']
    for reply, counts in together.items():
        kind, sign, word = ("yes", "✓", "right") if reply.right else ("no", "✗", "wrong")
        label = ", ".join(map(str, counts))
        said = _said(reply, query.example) if candidates is None else _chosen(reply, candidates)
        mark = f'<b role="img" aria-label="{word}">{sign}</b>'
        lines.append(f'<li class="{kind}">{mark}<small>{label}</small><span>{said}</span></li>')
    return "".join(lines)


def _chosen(reply: Reply, candidates: list[str]) -> str:
    sure = "" if reply.probability is None else f" <small>{reply.probability:.0%}</small>"
    return _word(reply.said, candidates) + sure


def _said(reply: Reply, example: Example) -> str:
    """A generated answer, the words marked in which it differs from the true one."""
    words, truth = reply.said.split(), example.answer.split()
    if not words:
        return '<span class="soft">(nothing)</span>'
    if reply.right or len(truth) == 1:
        return e(" ".join(words))
    pieces = []
    for change, start, end, _, _ in SequenceMatcher(None, words, truth, autojunk=False).get_opcodes():
        text = e(" ".join(words[start:end]))
        if text:
            pieces.append(text if change == "equal" else f"<mark>{text}</mark>")
    return " ".join(pieces)
