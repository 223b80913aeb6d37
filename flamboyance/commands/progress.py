"""The progress bar of commands."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def progress(total: int | None, what: str, shown: bool = True) -> Generator[Callable[[int], None]]:
    """Shows a progress bar on the error stream if that is a terminal. Yields the function that advances it.

    Args:
        total: None if it is not known.
        shown: False in all processes but the first.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Lines on the same terminal have to pass through the bar; a redirected stdout must not.
    with Progress(
        *columns,
        console=console,
        disable=not (shown and console.is_terminal),
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
