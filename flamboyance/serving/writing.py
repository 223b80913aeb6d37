"""The text of an answer while it grows: what of it may be shown already, and whether it has reached a stop."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from flamboyance.templates import Template

Decode = Callable[[list[int]], str]


class Writing:
    """The text of one answer.

    White space around it is removed. What has been shown never changes: the end of the text is withheld as long as it
    could belong to a stop, to white space at the end, or to the end of the template.

    Args:
        decode: token ids -> text.
        stops: the text ends before the first of these.
        template: the answer is read as this template reads it.

    Attributes:
        shown: the text so far.
        text: the whole text, once it is finished.
        stopped: whether a stop was found.
    """

    def __init__(self, decode: Decode, stops: Sequence[str] = (), template: Template | None = None):
        self._decode, self.template = decode, template
        own = template.stops if template is not None else ()
        self._stop = re.compile("|".join(map(re.escape, (*stops, *own)))) if (*stops, *own) else None
        self._starts = {stop[:length] for stop in (*stops, *own) for length in range(1, len(stop))}
        self._longest = max(map(len, self._starts), default=0)
        self._drop = "" if template is None else template.drop
        self._late = self._drop + ("" if template is None else template.ending)
        self.shown = self.text = ""
        self.stopped = False
        self._ids: list[int] = []
        self._said: str | None = ""  # what the tokens say of it, before it is parsed; None: all that they say

    @property
    def looks(self) -> bool:
        """Whether a stop can end the text, so that it has to be read after every token."""
        return self._stop is not None

    def read(self, ids: list[int], finished: bool) -> str:
        """What can be shown of the text of these tokens beyond what was shown before; all of it if it is finished."""
        text = self._decode(ids)
        found = self._stop.search(text) if self._stop is not None else None
        self.stopped = found is not None
        if found is not None:
            text = text[: found.start()]
        if finished or self.stopped:
            self.text = visible = text.strip() if self.template is None else self.template.parse(text)
            said = text.rstrip() if self.stopped else None
        else:
            said = self._certain(text)
            visible = said.translate(dict.fromkeys(map(ord, self._drop))).lstrip()
            if not visible.startswith(self.shown):  # a tokenizer that rewrites what it wrote
                return ""
        self._ids, self._said = ids, said
        new, self.shown = visible[len(self.shown) :], visible
        return new

    @property
    def kept(self) -> int:
        """The number of tokens without which the text so far would not be complete; of a text without a stop that is
        finished, all of them."""
        count = len(self._ids)
        while self._said is not None and count and self._decode(self._ids[: count - 1]).startswith(self._said):
            count -= 1
        return count

    def _certain(self, text: str) -> str:
        """The beginning of the text that no later token changes."""
        if text.endswith("\N{REPLACEMENT CHARACTER}"):  # half a character
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        withheld = next((n for n in range(min(self._longest, len(text)), 0, -1) if text[-n:] in self._starts), 0)
        text = text[: len(text) - withheld]
        while text and (text[-1].isspace() or text[-1] in self._late):
            text = text[:-1]
        return text
