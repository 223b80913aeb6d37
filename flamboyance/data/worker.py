"""Worker processes: one thread each, no signals but their parent's, an end when the parent ends, deaths reported."""

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
"""Undocumented errors of text and image decoders on damaged content. They cost one document."""

PATIENCE = 5.0
"""Seconds within which a process ends, on a busy machine, after its connections have closed."""

_EVERY = 1.0  # seconds between checks that the parent is alive
_TOKENIZERS = "TOKENIZERS_PARALLELISM"
_SIGNALS = {signal.SIGTERM, signal.SIGINT}


class WorkerDied(ChildProcessError, RuntimeError):
    """A data worker died."""


def unwatch(iterator: Any) -> None:
    """Removes a DataLoader's workers from those that torch's SIGCHLD handler watches.

    When a worker dies, the handler raises wherever the main thread is: in a `finally`, while a checkpoint is written.
    Without it the iterator notices within some seconds of waiting, and raises where the next item is requested.
    """
    remove = getattr(torch._C, "_remove_worker_pids", None)
    if remove and getattr(iterator, "_worker_pids_set", False):
        remove(id(iterator))
        iterator._worker_pids_set = False


def death(workers: Sequence[BaseProcess], patience: float = 0) -> str:
    """Which worker ended by itself, and how; "" if none did within `patience` seconds."""
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
    """Processes started within begin with SIGTERM and SIGINT blocked, until `start_worker` handles them. Signals to
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
    """Processes started within use one thread in the tokenizers library, and do not warn about the fork."""
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
    warnings.filterwarnings("ignore", module="PIL")  # thousands of warnings about damaged EXIF data
    # Ctrl-C and a scheduler's SIGTERM reach all processes at once, but the parent may still need its workers to save a
    # checkpoint. A worker ends when its parent terminates it or is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # blocked since the start; `_end_with` waits for SIGTERM where it can
        waited_for = {signal.SIGTERM} if hasattr(signal, "sigtimedwait") else set()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS - waited_for)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        if hasattr(signal, "sigtimedwait"):
            received = signal.sigtimedwait({signal.SIGTERM}, _EVERY)
            if received is not None and received.si_pid == parent:
                break
        else:
            time.sleep(_EVERY)
    os._exit(0)  # to torch, any other status is a crash while its loader is alive
