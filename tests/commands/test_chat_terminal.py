"""`flamboyance chat` in a real terminal: five turns with three images are the same text as one prompt."""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamboyance.commands.models import load
from flamboyance.conversation import answer_of
from flamboyance.templates import MODEL, OPENING, USER
from tests.tiny import save_tiny_flamingo

TURNS = [("what is this ?", 1), ("a red cat", 0), ("dog", 1), ("yes", 0), ("is this a square ?", 1)]
SIZE = (200, 600)  # rows and columns, so that no line is broken
PATIENCE = 300.0  # seconds


class Tmux:
    """A command in a window of tmux."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.socket = str(folder / "tmux")
        rows, columns = map(str, SIZE)
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", columns, "-y", rows, shlex.join(command))

    def write(self, line: str) -> None:
        self._tmux("send-keys", "-l", line)
        self._tmux("send-keys", "Enter")

    def lines(self) -> list[str]:
        return self._tmux("capture-pane", "-p").splitlines()

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self.socket, "kill-server"], capture_output=True, check=False)

    def _tmux(self, *words: str) -> str:
        run = subprocess.run(["tmux", "-S", self.socket, *words], capture_output=True, check=True, text=True)
        return run.stdout


class Pty:
    """A command on a pseudo-terminal."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.shown = b""
        self.end, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
        os.set_blocking(self.end, False)
        self.process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, start_new_session=True)
        os.close(other)

    def write(self, line: str) -> None:
        os.write(self.end, f"{line}\n".encode())

    def lines(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            self.shown += os.read(self.end, 1 << 16)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.shown.decode()).replace("\r", "").split("\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.end)


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [Pty, *([Tmux] if shutil.which("tmux") else [])])
def test_five_turns_are_one_prompt(terminal: Any, tmp_path: Path) -> None:
    directory = save_tiny_flamingo(tmp_path)
    rng = np.random.default_rng(0)
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    for picture in pictures:
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(picture)
    options = ["--max-new-tokens", "5", "--device", "cpu", "--dtype", "float32"]
    shown = terminal([sys.executable, "-m", "flamboyance", "chat", "--model", str(directory), *options], tmp_path)
    try:
        _asked(shown, 0)
        given = 0
        for turn, (text, count) in enumerate(TURNS):
            shown.write(" ".join([text, *map(str, pictures[given : given + count])]))
            given += count
            _asked(shown, turn + 1)
        answers = [line.removeprefix(MODEL).strip() for line in shown.lines() if line.startswith(MODEL)]
        shown.write("/prompt")
        _asked(shown, 2 * len(TURNS))
        printed = "\n".join(shown.lines())
    finally:
        shown.close()
    model, processor = load(str(directory), "cpu", "float32")
    whole, given = f"{OPENING}\n", 0
    for (text, count), answer in zip(TURNS, answers, strict=True):
        given += count
        prompt = f"{whole}User: {'<image>' * count}{text}\nFlamingo:"
        inputs = processor([prompt], [pictures[:given]])
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs.input_ids.shape[1] :]
        assert answer == answer_of(out.tolist(), processor)
        whole = f"{prompt} {answer}\n"
    assert given == 3 and len(set(answers)) > 1
    assert "\n".join(line.rstrip() for line in whole.splitlines()) in "\n".join(
        line.rstrip() for line in printed.splitlines()
    )


def _asked(shown: Any, answers: int) -> None:
    """Waits until there are so many answers, and the user's turn has come."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        lines = [line for line in shown.lines() if line.strip()]
        found = sum(line.startswith(MODEL) for line in lines)
        if lines and lines[-1].strip() == USER and found >= answers:
            return
        time.sleep(0.2)
    raise AssertionError("\n".join(shown.lines()))
