"""What a process that loads data needs: few threads, an end with its parent's, and errors that cost one document."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from PIL import Image

DECODER_ERRORS: tuple[type[Exception], ...] = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, EOFError, RuntimeError),
    *(AssertionError, SyntaxError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What decoders of text and images raise on damaged content, beside what they should: costs the document alone."""

PATIENCE = 5.0
"""Seconds in which a process whose connections are closed already ends, on a busy machine."""

_EVERY = 1.0  # seconds between looks at whether the parent still lives
_TOKENIZERS = "TOKENIZERS_PARALLELISM"


_SIGNALS = {signal.SIGTERM, signal.SIGINT}


class WorkerDied(ChildProcessError, RuntimeError):
    """A data worker died."""


def unwatch(iterator: Any) -> None:
    """Takes a DataLoader's workers off the list that torch's SIGCHLD handler watches.

    The handler raises wherever the main thread happens to be when a worker dies: in another function's `finally`, in a
    checkpoint, in a test's clean-up. Without it the iterator notices by itself, within some seconds of waiting, and
    raises where the item is asked for.
    """
    remove = getattr(torch._C, "_remove_worker_pids", None)
    if remove and getattr(iterator, "_worker_pids_set", False):
        remove(id(iterator))
        iterator._worker_pids_set = False


def death(workers: Sequence[BaseProcess], patience: float = 0) -> str:
    """Which of the workers ended by itself, and how; empty where none did within `patience` seconds."""
    until = time.monotonic() + patience
    while workers:
        for process in workers:
            if code := process.exitcode:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
                return f"worker {process.pid} {how}"
        if time.monotonic() >= until:
            break
        time.sleep(0.02)
    return ""


@contextmanager
def sheltered_start() -> Generator[None]:
    """Processes started within are born with SIGTERM and SIGINT blocked, until `start_worker` handles them. Signals to
    this process are delivered at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def threads_of_tokenizers(off: bool) -> Generator[None]:
    """Processes started within keep to one thread in the tokenizers library, which warns unless told before."""
    before = os.environ.get(_TOKENIZERS)
    if off:
        os.environ[_TOKENIZERS] = "false"
    try:
        yield
    finally:
        if off and before is None:
            del os.environ[_TOKENIZERS]
        elif off and before is not None:
            os.environ[_TOKENIZERS] = before


def start_worker(_number: int, parent: int) -> None:
    """Sets a worker process up; `parent` is the id of the process that started it."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="PIL")  # thousands of remarks on broken EXIF data
    # Ctrl-C and a scheduler's SIGTERM go to all processes at once, but the parent may want to save and go on: the
    # worker ends when the parent tells it to, or is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # blocked since birth; `_end_with` takes SIGTERM where it can wait for it
        waited_for = {signal.SIGTERM} if hasattr(signal, "sigtimedwait") else set()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS - waited_for)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        if hasattr(signal, "sigtimedwait"):
            told = signal.sigtimedwait({signal.SIGTERM}, _EVERY)
            if told is not None and told.si_pid == parent:
                break
        else:
            time.sleep(_EVERY)
    os._exit(0)  # torch takes anything else for a crash, while its loader still lives
