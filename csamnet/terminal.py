"""What all commands share: the console, errors that a user can mend, progress bars."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich import progress as rich
from rich.console import Console
from rich.text import Text

from csamnet.files import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="CSAMNet on nuclei and other images: data, training, evaluation, prediction.",
)
SILENT = os.environ.get("LOCAL_RANK", "0") != "0"  # of several processes one talks
console = Console(highlight=False, markup=False, quiet=SILENT)
errors = Console(stderr=True, highlight=False, markup=False)


def command(function: Callable) -> Callable:
    """Register a command; what the user can mend is printed without a traceback, with exit code 2."""

    @app.command()
    @functools.wraps(function)
    def run(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except InputError as error:
            complain(error)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not re.search("(out of|not enough) memory", str(error)):
                raise
            mends = {"train": "--set batch=4, --set tile=128", "slide": "--batch 1"}
            mend = mends.get(function.__name__, "smaller images, --device cpu, or csamnet slide, which reads in pieces")
            complain(f"there is not enough memory\n  mend: {mend}")
        except OSError as error:
            complain(f"{error.strerror or error}" + (f"\n  file: {error.filename}" if error.filename else ""))
        raise typer.Exit(2)

    return run


def complain(error: object) -> None:
    """Print what went wrong, as it is: brackets in a name are no markup."""
    errors.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)


@contextmanager
def bar(
    label: str, count: type[rich.ProgressColumn] = rich.MofNCompleteColumn
) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar in a terminal (a line now and then where there is none); yields `tick(done, all)`."""
    columns = rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), count()
    with rich.Progress(*columns, rich.TimeElapsedColumn(), rich.TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
