"""Results on standard output, progress on standard error."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from kvmnet.engine.transaction import Event

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def print_json(data: Any) -> None:
    """One document on standard output, keys in a stable order."""
    click.echo(json.dumps(data, indent=2, sort_keys=True, default=list))


def say(text: str) -> None:
    """A line for people, on standard error, so that standard output stays the result."""
    click.echo(text, err=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with as many columns as fit; plain and tab-free when there is no terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    out = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        out.add_column(column, overflow="fold")
    for row in rows:
        out.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, emoji=False).print(out)


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
