"""`chat`: a conversation about images and videos in a terminal."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from flamboyance.checks import printable
from flamboyance.commands.arguments import add_model, add_video, at_least
from flamboyance.files import local
from flamboyance.images.listing import is_image

HELP = """\
Write a line and press Enter. Images and videos are given by their paths, at any turn: the path of a file that ends as
images or videos do, or @ and any path; a path with spaces in quotes.
  What is this? cat.jpg
  @"my clips/walk.mp4" And what happens here?
/new begins a new conversation, /prompt shows the text so far, /help this page, /quit (or Ctrl-D) ends."""

EPILOG = f"in the conversation:\n{HELP}\n"
_BEFORE, _AFTER = "([", ".,;:!?…)]"  # what may stand around a path
_WORD = re.compile(
    r"""(?P<before>[(\[]*)(?P<at>@?)(?:"(?P<double>[^"]+)"|'(?P<single>[^']+)')(?P<after>[.,;:!?…)\]]*)(?!\S)"""
    r"""|(?P<word>\S+)"""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog or ''}{EPILOG}"
    add_model(parser)
    add_video(parser.add_argument_group("videos"))
    group = parser.add_argument_group("conversation")
    group.add_argument("--opening", metavar="TEXT", help="what precedes the first turn, or none (default: Flamingo's)")
    group.add_argument("--max-new-tokens", type=at_least(1), default=50, metavar="N", help="of an answer (default: 50)")
    group.add_argument("--beams", type=at_least(1), default=1, metavar="N", help="default: 1, greedy")


def chat(arguments: argparse.Namespace) -> int:
    """Converse until the input ends."""
    from flamboyance.commands.models import load, model_name, note_default, set_sampling
    from flamboyance.conversation import OPENING, Conversation

    model, processor = load(model_name(arguments), arguments.device, arguments.dtype, quantize=arguments.quantize)
    set_sampling(processor, arguments, model_name(arguments))
    if arguments.model is None:
        note_default()
    opening = {None: OPENING, "none": ""}.get(arguments.opening, arguments.opening)
    talk = Conversation(model, processor, opening)
    if sys.stdin.isatty():
        print(HELP, file=sys.stderr)
    while (line := _next_line()) is not None:
        if not line.strip():
            continue
        if line.strip() in ("/quit", "/exit"):
            break
        _turn(talk, line.strip(), arguments)
    return 0


def _next_line() -> str | None:
    """The next line that the user writes; None at the end."""
    try:
        return input("User: " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _turn(talk: Any, line: str, arguments: argparse.Namespace) -> None:
    """One turn, or one command; a mistake is reported in one line, and the conversation stays as it was."""
    if line == "/help":
        return print(HELP)
    if line == "/new":
        return talk.reset()
    if line == "/prompt":
        return print(talk.text, end="")
    try:
        if line.startswith("/") and " " not in line and not os.path.exists(line):
            raise ValueError(f"unknown command {line!r}: expected /new, /prompt, /help or /quit")
        text, media = parts_of(line)
        answer = talk.say(text, media, max_new_tokens=arguments.max_new_tokens, num_beams=arguments.beams)
    except (ValueError, OSError, ImportError) as error:
        print(f"flamboyance: {printable(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
        return None
    return print(f"{'Flamingo: ' if sys.stdin.isatty() else ''}{printable(answer)}", flush=True)


def parts_of(line: str) -> tuple[str, list[Path]]:
    """The text of a turn, and the paths in it, in order. Punctuation after a path belongs to the text.

    Raises:
        FileNotFoundError: a path after @, or one with the suffix of an image or a video, that does not exist: the model
            would answer without it.
    """
    words: list[str] = []
    paths: list[Path] = []
    for found in _WORD.finditer(line):
        if found["word"] is None:
            before, marked, after = found["before"], bool(found["at"]), found["after"]
            name = found["double"] or found["single"]
        else:
            before, marked, name, after = _divided(found["word"])
        path = local(name)
        if not marked and not is_image(path):
            words.append(found[0])
            continue
        if not path.is_file():
            raise FileNotFoundError(
                f"no such image or video: {path}"
                + ("" if marked else "; correct the path, or leave out its suffix if you only mention it")
            )
        paths.append(path)
        left = (before + after).replace("()", "").replace("[]", "")
        if left and words and left[0] in _AFTER:
            words[-1] += left
        elif left:
            words.append(left)
    return " ".join(words), paths


def _divided(word: str) -> tuple[str, bool, str, str]:
    """What is before a path in a word, whether it is marked by @, the path, and what is after it. But punctuation may
    belong to the name of a file."""
    rest = word if _file(word) else word.lstrip(_BEFORE)
    before, marked, name = word[: len(word) - len(rest)], rest != _bare(rest), _bare(rest)
    if _file(rest):
        return before, marked, name, ""
    possessive = re.fullmatch(r"(.+\.\w+)['’]s", name)  # "cat.jpg's colour"
    path = possessive[1] if possessive else name.rstrip(_AFTER)
    return before, marked, path, name[len(path) :]


def _bare(word: str) -> str:
    """A word without the @ before it."""
    return word[1:] if len(word) > 1 and word.startswith("@") else word


def _file(word: str) -> bool:
    return os.path.isfile(local(_bare(word)))  # also of a word that is too long for a name
