"""Results on standard output, progress on standard error."""
from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.text import Text

    from kvmnet.engine.transaction import Event

GAP = 3
"""Characters between two columns."""
FOLDED = 24
"""Characters that a last column has at least, before others are left out for it."""

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def print_json(data: Any) -> None:
    """One document on standard output, keys in a stable order."""
    click.echo(json.dumps(data, indent=2, sort_keys=True, default=list))


def say(text: str) -> None:
    """A line for people, on standard error, so that standard output stays the result."""
    click.echo(text, err=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], spare: Sequence[str] = ()) -> None:
    """A table. On a terminal that is too narrow, columns without content are left out, then those of
    *spare* in this order, then long cells are folded; elsewhere every row is one line."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sum(widths) + GAP * len(columns)
    shown = fitting(columns, widths, [not any(column) for column in zip(*rows, strict=True)], spare, width)
    out = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for i in shown:
        out.add_column(columns[i], overflow="fold")
    for row in rows:
        out.add_row(*(Text(cell) if isinstance(cell := row[i], str) else cell for i in shown))
    Console(width=width, highlight=False, emoji=False).print(out)


def fitting(columns: Sequence[str], widths: Sequence[int], empty: Sequence[bool], spare: Sequence[str],
            width: int) -> list[int]:
    """Which columns are shown in *width* characters; the last one may be folded."""
    shown = list(range(len(columns)))
    for i in (*(i for i, nothing in enumerate(empty) if nothing), *(columns.index(name) for name in spare)):
        needed = sum(min(widths[k], FOLDED) if k == shown[-1] else widths[k] for k in shown) + GAP * len(shown)
        if needed <= width:
            break
        if i in shown and len(shown) > 1:
            shown.remove(i)
    return shown


class Bar:
    """Progress of a change: one line that is rewritten on a terminal, silent elsewhere."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet or not sys.stderr.isatty()
        self.last = ""

    def hear(self, event: Event) -> None:
        """Listener of a transaction."""
        self.show(event.doing.value, event.done, event.total)

    def show(self, phase: str, done: int = 0, total: int = 0) -> None:
        if self.quiet:
            return
        text = f"{phase} {done}/{total}" if total else phase
        if text != self.last:
            click.echo(f"\r\033[K{text}", err=True, nl=False)
            self.last = text

    def end(self) -> None:
        if self.last:
            click.echo("\r\033[K", err=True, nl=False)
            self.last = ""
