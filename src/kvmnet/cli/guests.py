"""kvmnet vm: the guests that kvmnet runs itself."""
from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from kvmnet.cli.output import json_option, print_json, say, table
from kvmnet.records import asdict

if TYPE_CHECKING:
    from kvmnet.api import Host


def host() -> Host:
    from kvmnet.api import Host
    return Host()


@click.group()
def vm() -> None:
    """Guests that kvmnet runs (driver qemu), and the arguments for those that others run."""


@vm.command()
@click.argument("names", nargs=-1, required=True)
@json_option
def start(names: tuple[str, ...], as_json: bool) -> int:
    """Start guests of the applied document.

    Those that run already are left alone.
    """
    started = host().start_guests(names, say=(lambda _: None) if as_json else say)
    if as_json:
        print_json({"started": started})
    return 0


@vm.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--timeout", default=20.0, show_default=True, metavar="SECONDS", help="Time to shut down by itself.")
def stop(names: tuple[str, ...], timeout: float) -> int:
    """Stop guests.

    They are asked to shut down, and ended when they have not after the timeout.
    """
    host().stop_guests(names, say=say, timeout=timeout)
    return 0


@vm.command("list")
@json_option
def list_guests(as_json: bool) -> int:
    """List the guests of the document."""
    rows = host().guests()
    if as_json:
        print_json([asdict(row) for row in rows])
        return 0
    table("", ("guest", "driver", "state", "pid", "accelerator", "networks"),
          [(r.name, r.driver, r.state, str(r.pid or ""), r.accel, ", ".join(r.networks)) for r in rows],
          spare=("driver", "accelerator"))
    return 0


@vm.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="Time until it is given up.")
def execute(name: str, command: tuple[str, ...], timeout: float) -> int:
    """Run a command inside a guest.

    It goes through the guest's agent; the exit code is the command's own.
    """
    code, out, err = host().execute(name, command, timeout=timeout)
    sys.stdout.write(out)
    sys.stderr.write(err)
    return code


@vm.command()
@click.argument("name")
def console(name: str) -> int:
    """Attach to a guest's console; Ctrl-] leaves."""
    host().console(name)
    return 0


@vm.command()
@click.argument("name")
@click.option("--libvirt", is_flag=True, help="libvirt XML instead of QEMU arguments.")
def arguments(name: str, libvirt: bool) -> int:
    """Print what to tell QEMU or libvirt to use the taps.

    For guests of the applied document that something else starts (no run: in the document).
    """
    click.echo(host().external(name, libvirt=libvirt))
    return 0


@vm.command()
@json_option
def image(as_json: bool) -> int:
    """Make the tiny test guest ahead of time.

    Without this it is made at first use. Its kernel and agent are fetched as Debian packages and unpacked,
    not installed.
    """
    from kvmnet.guests.image import build
    built = build(host().paths, (lambda _: None) if as_json else say)
    data = {"kernel": str(built.kernel), "initrd": str(built.initrd), "version": built.version}
    print_json(data) if as_json else say(f"tiny guest {built.version}: {built.kernel}")
    return 0
