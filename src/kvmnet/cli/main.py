"""The command line. Each command is one line of COMMANDS and is imported when it is called."""
from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from kvmnet import __version__
from kvmnet.errors import HostCannot, KvmnetError, SpecError
from kvmnet.host.run import ToolFailed

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module:function, one line of help)
    "init": ("documents:init", "Write a commented starter document."),
    "schema": ("documents:schema", "Print the document's JSON Schema, for editors."),
    "plan": ("change:plan", "Show what apply would do. Exits 2 when there are changes."),
    "apply": ("change:apply", "Make the host as the document says, in one transaction."),
    "confirm": ("change:confirm", "Keep a change that was applied with --confirm."),
    "recover": ("change:recover", "Clear up after a change that was cut off."),
    "rollback": ("change:rollback", "Go back to an earlier revision."),
    "destroy": ("change:destroy", "Remove what kvmnet made and give back what it borrowed."),
    "boot": ("change:boot", "Apply the last confirmed revision (run by the systemd unit)."),
    "status": ("look:status", "Everything wanted and seen, at a glance."),
    "history": ("look:history", "Who applied what, when, from which file."),
    "check": ("look:check", "Prove with packets what the document promises."),
    "doctor": ("doctor:doctor", "What is broken on this host, why, and what mends it."),
    "explain": ("doctor:explain", "What an error code or a line of a log means on this host, and what mends it."),
    "why": ("why:why", "Why A does not reach B: everything in the way, with evidence and fix."),
    "facts": ("why:facts", "The whole network of this host as one JSON document, without secrets."),
    "capture": ("capture:capture", "Show what passes at guests and uplinks, or write it to a file."),
    "import": ("adopt:import_", "Write a document from a running host or its configuration files."),
    "export": ("adopt:export", "Write the uplink part as netplan, networkd or nmstate files."),
    "bench": ("bench:bench", "Measure what this host's network is worth."),
    "tune": ("tune:tune", "Propose settings for this host and its guests' NICs, with reasons; measure them."),
    "vm": ("guests:vm", "Start, stop, list and enter guests."),
}
PRIVILEGES = "run it as root, or with sudo: reading and changing the network needs CAP_NET_ADMIN"
FULL = 74
"""Exit code for output that cannot be written (EX_IOERR)."""
BROKEN_PIPE = 141
"""As a shell says of what SIGPIPE ended."""
USAGE_ERROR = 64
"""Exit code for a mistyped command line (EX_USAGE); 2 means "there are changes"."""


class Lazy(click.Group):
    """A group whose commands are imported one by one, so that --version and --help stay fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"kvmnet.cli.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            from difflib import get_close_matches
            near = get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(f"no command {args[0]!r}" + (f"; did you mean {near[0]}?" if near else "; see kvmnet --help"))
        return super().resolve_command(ctx, args)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvmnet")
def cli() -> None:
    """Networking for KVM hosts, declared in one document.

    \b
    kvmnet init      writes a document to start from
    kvmnet plan      shows what it would change
    kvmnet apply     makes the change, or nothing at all
    """


def open_streams() -> None:
    """Standard streams that were closed become /dev/null, before another file takes their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def main() -> None:
    """Entry point: ends this process with the command's exit code."""
    open_streams()
    try:
        code = run_command()
    except OSError as error:  # the error could not be told, either
        if error.errno not in (errno.ENOSPC, errno.EPIPE, errno.EIO):
            raise
        code = FULL
    leave(code)


def run_command() -> int:
    """Runs a command and turns every error of the user's world into words and a code."""
    try:
        code = cli.main(standalone_mode=False, color=False if os.environ.get("NO_COLOR") else None)
    except SystemExit as ended:  # 1 is click's own, when nobody reads on; others are those of a signal
        code = BROKEN_PIPE if ended.code == 1 else ended.code
    except click.exceptions.Abort:
        click.echo("stopped; nothing was changed", err=True)
        code = 130
    except click.UsageError as wrong:
        wrong.show()
        code = USAGE_ERROR
    except click.ClickException as wrong:
        wrong.show()
        code = wrong.exit_code
    except SpecError as wrong:
        report_spec(wrong)
        code = wrong.exit_code
    except KvmnetError as wrong:
        click.echo(click.style("error: ", fg="red") + str(wrong), err=True)
        if wrong.hint:
            click.echo(f"  {wrong.hint}", err=True)
        code = wrong.exit_code
    except ToolFailed as failed:
        report_tool(failed)
        code = HostCannot.exit_code
    except PermissionError as denied:
        click.echo(f"{click.style('error:', fg='red')} {denied.filename}: permission denied; {PRIVILEGES}", err=True)
        code = HostCannot.exit_code
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        code = 130
    except BrokenPipeError:
        code = BROKEN_PIPE
    except OSError as full:
        if full.errno != errno.ENOSPC:
            raise
        click.echo(f"{click.style('error:', fg='red')} the output cannot be written: {full.strerror}", err=True)
        code = FULL
    return code if isinstance(code, int) else 0


def leave(code: int) -> NoReturn:
    """End this process at once: to take the objects of a thousand guests apart one by one costs 45 ms."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError):  # closed
            try:
                stream.flush()
            except BrokenPipeError:
                code = BROKEN_PIPE
            except OSError:
                code = code or FULL
    os._exit(code)


def report_tool(failed: ToolFailed) -> None:
    """What a tool said while the host was only looked at; of changes the transaction speaks."""
    click.echo(f"{click.style('error:', fg='red')} {failed}", err=True)
    if "not permitted" in failed.detail or "denied" in failed.detail:
        click.echo(f"  {PRIVILEGES}", err=True)


def report_spec(wrong: SpecError) -> None:
    """Every problem of the document with its place, as compilers print them."""
    for problem in wrong.problems:
        place = f"{wrong.source}:{problem.line}:{problem.column}" if problem.line else wrong.source
        click.echo(f"{place}: {click.style('error:', fg='red')} {problem.path + ': ' if problem.path else ''}"
                   f"{problem.message}", err=True)
        if problem.hint:
            click.echo(f"    {problem.hint}", err=True)
    click.echo(f"{len(wrong.problems)} problem(s); nothing was changed", err=True)


if __name__ == "__main__":
    main()
