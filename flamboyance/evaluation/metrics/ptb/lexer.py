"""A scanner like lex: of all rules that match at a position, the longest match wins, then the earliest rule.

The tokenizer that is reproduced here was made by a lexer generator; Python's `re` takes the first alternative that
matches, whatever its length. So the patterns become one non-deterministic automaton, whose deterministic states are
made when a text first reaches them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rule:
    """A pattern of tokens.

    Attributes:
        action: a name by which the caller decides how to rewrite the token.
        pattern: see `Automaton`.
        follow: the pattern of what must come after the token. It counts for the length of a match, but is not consumed.
        gives_back: how many characters at the end of the token are not consumed either.
    """

    action: str
    pattern: str
    follow: str | None = None
    gives_back: int = 0


@dataclass(eq=False)
class State:
    """A deterministic state.

    Attributes:
        members: the states of the non-deterministic automaton that it combines.
        accepts: the number of the first pattern that matches here, or None.
        after: character -> the next state; None if no pattern continues. Filled as texts are read.
        after_kind: the same by kind of character; characters of one kind are in the same classes.
    """

    members: frozenset[int]
    accepts: int | None
    after: dict[str, State | None] = field(default_factory=dict)
    after_kind: dict[int, State | None] = field(default_factory=dict)


class Automaton:
    """Several patterns, identified by their index.

    A pattern is a regular expression of literals, `\\` escapes, `[...]`, `(...)`, `|`, `*`, `+`, `?`, `{m,n}`, and
    `{NAME}` for one of `macros`. Character classes are read by Python's `re`.
    """

    def __init__(self, patterns: Iterable[str], macros: Mapping[str, str]) -> None:
        self.macros = macros
        self.empty: list[list[int]] = []  # for each state, the states reached without a character
        self.edges: list[list[tuple[int, int]]] = []  # for each state, (number of a character class, next state)
        self.classes: dict[str, int] = {}
        self.accepting: dict[int, int] = {}
        first = self.add()
        for number, pattern in enumerate(patterns):
            begin, end = _Parser(pattern, self).parse()
            self.empty[first].append(begin)
            self.accepting[end] = number
        self._tests = [re.compile(written, re.DOTALL).match for written in self.classes]
        self._kind_of: dict[str, int] = {}
        self._classes_of: dict[frozenset[int], int] = {}  # a set of classes -> the kind of characters in just these
        self._states: dict[frozenset[int], State] = {}
        self.start = self._state([first])

    def add(self) -> int:
        """Adds a state to the non-deterministic automaton."""
        self.empty.append([])
        self.edges.append([])
        return len(self.empty) - 1

    def _state(self, members: Iterable[int]) -> State:
        """The deterministic state of these members and of the states that they reach without a character."""
        reached, todo = set(), list(members)
        while todo:
            state = todo.pop()
            if state not in reached:
                reached.add(state)
                todo.extend(self.empty[state])
        key = frozenset(state for state in reached if self.edges[state] or state in self.accepting)
        if key not in self._states:
            accepts = min((self.accepting[state] for state in key if state in self.accepting), default=None)
            self._states[key] = State(key, accepts)
        return self._states[key]

    def step(self, state: State, character: str) -> State | None:
        """The state after one more character; adds it to `state.after`."""
        if character not in self._kind_of:
            inside = frozenset(number for number, test in enumerate(self._tests) if test(character))
            self._kind_of[character] = self._classes_of.setdefault(inside, len(self._classes_of))
        kind = self._kind_of[character]
        if kind not in state.after_kind:
            inside = next(classes for classes, number in self._classes_of.items() if number == kind)
            reached = [to for member in state.members for number, to in self.edges[member] if number in inside]
            state.after_kind[kind] = self._state(reached) if reached else None
        state.after[character] = state.after_kind[kind]
        return state.after_kind[kind]

    def longest(self, text: str, start: int) -> tuple[int, int] | None:
        """(pattern, end) of the longest match that begins at `start`."""
        state, found = self.start, None
        for place in range(start, len(text)):
            character = text[place]
            try:
                following = state.after[character]
            except KeyError:
                following = self.step(state, character)
            if following is None:
                break
            state = following
            if state.accepts is not None:
                found = state.accepts, place + 1
        return found

    def ends(self, text: str, start: int, stop: int) -> list[int]:
        """The ends of the matches that begin at `start`, up to `stop`, in rising order."""
        state, found = self.start, []
        for place in range(start, stop):
            following = state.after.get(text[place]) or self.step(state, text[place])
            if following is None:
                break
            state = following
            if state.accepts is not None:
                found.append(place + 1)
        return found


class _Parser:
    """Parses one pattern by recursive descent. Each method returns the (first, last) states of its part."""

    def __init__(self, pattern: str, automaton: Automaton) -> None:
        self.pattern, self.automaton, self.place = pattern, automaton, 0

    def parse(self) -> tuple[int, int]:
        part = self._alternatives()
        if self.place != len(self.pattern):
            raise ValueError(f"unexpected {self.pattern[self.place]!r} at {self.place} of {self.pattern!r}")
        return part

    def _alternatives(self) -> tuple[int, int]:
        first, last = self.automaton.add(), self.automaton.add()
        while True:
            begin, end = self._sequence()
            self.automaton.empty[first].append(begin)
            self.automaton.empty[end].append(last)
            if not self._next("|"):
                return first, last

    def _sequence(self) -> tuple[int, int]:
        first = last = self.automaton.add()
        while self.place < len(self.pattern) and self.pattern[self.place] not in "|)":
            written_from = self.place
            begin, end = self._atom()
            written = self.pattern[written_from : self.place]
            low, high = self._repeats()
            if (low, high) != (1, 1):
                begin, end = self._repeat(written, low, high)
            self.automaton.empty[last].append(begin)
            last = end
        return first, last

    def _next(self, wanted: str) -> bool:
        """Whether `wanted` comes next; if so, moves past it."""
        matches = self.pattern.startswith(wanted, self.place)
        self.place += len(wanted) * matches
        return matches

    def _repeats(self) -> tuple[int, int | None]:
        for mark, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._next(mark):
                return times
        bounds = re.compile(r"\{(\d+)(,?)(\d*)\}").match(self.pattern, self.place)
        if not bounds:
            return 1, 1
        self.place = bounds.end()
        low = int(bounds[1])
        if not bounds[2]:
            return low, low
        return low, int(bounds[3]) if bounds[3] else None

    def _repeat(self, written: str, low: int, high: int | None) -> tuple[int, int]:
        """An atom repeated from `low` to `high` times: copies in a row; without a bound, the last one loops."""
        first = last = self.automaton.add()
        copies = max(low, 1) if high is None else high
        leave = [first] if low == 0 else []
        for number in range(1, copies + 1):
            begin, end = _Parser(written, self.automaton)._atom()
            self.automaton.empty[last].append(begin)
            if high is None and number == copies:
                self.automaton.empty[end].append(begin)
            last = end
            if number >= low:
                leave.append(last)
        final = self.automaton.add()
        for state in leave:
            self.automaton.empty[state].append(final)
        return first, final

    def _atom(self) -> tuple[int, int]:
        if self._next("("):
            part = self._alternatives()
            if not self._next(")"):
                raise ValueError(f"no ')' at {self.place} of {self.pattern!r}")
            return part
        macro = re.compile(r"\{([A-Z]\w*)\}").match(self.pattern, self.place)
        if macro:
            self.place = macro.end()
            return _Parser(self.automaton.macros[macro[1]], self.automaton).parse()
        one = re.compile(r"\[(?:\\.|[^\]\\])*\]|\\u[0-9A-Fa-f]{4}|\\.|[^\\]", re.DOTALL).match(self.pattern, self.place)
        if not one:
            raise ValueError(f"no character at {self.place} of {self.pattern!r}")
        self.place = one.end()
        first, last = self.automaton.add(), self.automaton.add()
        number = self.automaton.classes.setdefault(one[0], len(self.automaton.classes))
        self.automaton.edges[first].append((number, last))
        return first, last


class Lexer:
    """Finds the tokens of a list of rules. `macros` maps the names in the rules' patterns to patterns."""

    def __init__(self, rules: Iterable[Rule], macros: Mapping[str, str]) -> None:
        self.rules = list(rules)
        whole = [rule.pattern if rule.follow is None else f"({rule.pattern})({rule.follow})" for rule in self.rules]
        self.automaton = Automaton(whole, macros)
        self._parts = {
            number: (Automaton([rule.pattern], macros), Automaton([rule.follow], macros))
            for number, rule in enumerate(self.rules)
            if rule.follow is not None
        }

    def match(self, text: str, start: int) -> tuple[Rule, int] | None:
        """The rule that wins at a position, and the end of its token; None if no rule matches."""
        found = self.automaton.longest(text, start)
        if found is None:
            return None
        number, end = found
        rule = self.rules[number]
        if number in self._parts:
            token, follow = self._parts[number]
            # The token is the longest part after which `follow` matches the rest.
            end = next(cut for cut in reversed(token.ends(text, start, end)) if end in follow.ends(text, cut, end))
        return rule, end - rule.gives_back
