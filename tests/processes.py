"""Processes for tests that kill one, or need several: born in a tenth of a second, with everything imported.

A new interpreter takes seconds to import torch and transformers. These are forked by a server that has done so and does
nothing else: it has one thread and has computed nothing, so a fork of it is as good as a new process.
"""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

_context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
if hasattr(os, "fork"):
    _context.set_forkserver_preload(["tests.preloaded"])
_started: weakref.WeakSet["Child"] = weakref.WeakSet()


def until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Waits for a condition that another thread or process fulfils. (Even a process that SIGKILL was sent to is there
    for a moment.)"""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def command_of(pid: int | str) -> bytes:
    """The command line of a process; empty if it has ended, also as a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Child:
    """A call of a function in a process and a session of its own; used as `subprocess.Popen` is.

    Args:
        function: of a module, so that the process can find it; what it returns is the exit code, as of a command.
        log: a file to which the process writes what it prints, after what is there.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, log: Path) -> None:
        self.log = log
        self._process = _context.Process(target=_call, args=(function, arguments, log))
        self._process.start()
        self.pid: int = self._process.pid or 0
        _started.add(self)

    def poll(self) -> int | None:
        """The exit code, minus the signal's number where one ended it; None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> int:
        """Ends the process and those it started, if it still runs; returns its exit code."""
        if self.poll() is None:
            # Until it has a session of its own, the group has another number.
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    @property
    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


def python(code: str, *arguments: str | Path, log: Path) -> str:
    """What `python -c CODE ARGUMENTS` prints, in a process that has imported everything before. What an import does is
    not seen in it."""
    child = Child(_run, code, [str(argument) for argument in arguments], log=log)
    assert child.wait(600) == 0, child.printed
    return child.printed


def _run(code: str, arguments: list[str]) -> None:
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})


def ranks(function: Callable[..., Any], *arguments: Any, log: Path) -> str:
    """Calls of a function in two processes that come together as those of torchrun do; what both have printed."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent has one
    both = [Child(_rank, rank, store.port, function, arguments, log=log.with_suffix(f".{rank}")) for rank in range(2)]
    assert [one.wait(600) for one in both] == [0, 0], "\n".join(one.printed[-3000:] for one in both)
    return "".join(one.printed for one in both)


def _rank(rank: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return function(*arguments)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], log: Path) -> None:
    os.setsid()
    with open(log, "a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(function(*arguments))


@atexit.register
def _end() -> None:
    """A failed test leaves its processes; the interpreter would wait for them."""
    for child in list(_started):
        child.kill()
