"""How the command line speaks: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from nnm_core.errors import NNMError
from nnm_core.evaluation.report import STDOUT_NAME, snippet, visible


def stdout() -> Console:
    """The console for results. Made at each use, because tests and pipes replace ``sys.stdout``."""
    return Console(file=sys.stdout, highlight=False, markup=False)


def stderr() -> Console:
    """The console for progress, warnings and errors."""
    return Console(file=sys.stderr, highlight=False, markup=False)


def owns_stdout(target: Path | None) -> bool:
    """Whether JSON goes to stdout, where nothing else may then appear."""
    return str(target) == STDOUT_NAME


def show_error(error: NNMError) -> None:
    """The message in red and the hint below it."""
    console = stderr()
    # NNMError.__str__ appends the hint; here it gets a line of its own.
    console.print(Text("Error: ", style="bold red") + Text(visible(str(error.args[0])), style="red"))
    if error.hint:
        console.print(Text("Hint:  ", style="bold") + Text(visible(error.hint)))


def show_unexpected(error: BaseException) -> None:
    """One line for what should not have happened, and how to see where."""
    console = stderr()
    message = f"{type(error).__name__}: {snippet(str(error), 300) or 'no message'}"
    console.print(Text("Unexpected error: ", style="bold red") + Text(message, style="red"))
    console.print(Text("Hint:  ", style="bold") + Text("set NNM_TRACEBACK=1 to see the traceback; please report it."))


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A `warnings.showwarning` of one line without file and line number."""
    if issubclass(category, DeprecationWarning | PendingDeprecationWarning | ResourceWarning):
        return
    stderr().print(Text("Warning: ", style="bold yellow") + Text(snippet(str(message), 500), style="yellow"))


@contextmanager
def readable_warnings() -> Iterator[None]:
    """Show warnings as single lines on stderr inside the block."""
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        yield


@contextmanager
def progress_bar(description: str, total: int | None = None) -> Iterator[Progress]:
    """A bar on stderr with one task, number 0; it disappears when the block ends and is silent in a pipe."""
    console = stderr()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(description, total=total)
        yield progress
