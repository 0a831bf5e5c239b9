"""Every command can be called with the options that it declares, and has no other."""
from __future__ import annotations

import inspect
from collections.abc import Iterator

import click
import pytest

from kvmnet.cli.main import cli


def commands(group: click.Group, name: str = "kvmnet") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


ALL = dict(commands(cli))


def test_there_are_commands_in_groups_too() -> None:
    assert {"kvmnet check", "kvmnet vm start", "kvmnet bench failover"} <= ALL.keys()


@pytest.mark.parametrize("name", ALL)
def test_a_command_takes_what_it_declares(name: str) -> None:
    command = ALL[name]
    assert command.callback
    declared = {p.name for p in command.params if p.expose_value}
    assert declared == set(inspect.signature(command.callback).parameters)
