"""Commands that take over what a host has, and give it back: import, export."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmnet.cli.output import json_option, print_json, say
from kvmnet.errors import KvmnetError

if TYPE_CHECKING:
    from kvmnet.adopt.importing import Imported

SOURCES = ("host", "netplan", "ifupdown", "networkd", "nmstate")
TARGETS = ("netplan", "networkd", "nmstate")
FILE = click.Path(path_type=Path)


@click.command("import")
@click.argument("paths", nargs=-1, type=FILE)
@click.option("--from", "origin", type=click.Choice(SOURCES), default="host", show_default=True,
              help="The running host, or configuration files: those at PATHS, or the host's own.")
@click.option("--out", "-o", type=FILE, help="Write the document there instead of to standard output.")
@click.option("--all", "everything", is_flag=True, help="Also list what stays with the host and what is foreign.")
@json_option
def import_(paths: tuple[Path, ...], origin: str, out: Path | None, everything: bool, as_json: bool) -> int:
    """Write a document from a running host or from its configuration files. Changes nothing.

    Whatever the document does not express is listed with its place.
    """
    from kvmnet.adopt.importing import import_format, import_host
    from kvmnet.api import Host
    if origin == "host" and paths:
        raise KvmnetError("the running host is read without files", "say which format the files have: --from netplan")
    found = import_host(Host()) if origin == "host" else import_format(origin, paths)
    if out is not None:
        write(out, found.text)
    if as_json:
        print_json(found.to_json())
        return 0
    if out is None:
        click.echo(found.text, nl=False)
    report(found, everything)
    return 0


def report(found: Imported, everything: bool) -> None:
    """What became of the input, on standard error."""
    from kvmnet.adopt.model import Outcome
    counts = {o: len(found.of(o)) for o in Outcome}
    say(f"from {found.origin}: " + ", ".join(f"{n} {o.value}" for o, n in counts.items() if n))
    shown = (Outcome.UNSUPPORTED, *((Outcome.KEPT, Outcome.FOREIGN) if everything else ()))
    for outcome in shown:
        for element in found.of(outcome):
            say(f"{outcome.value}: {element}")
    if found.changes is not None:
        say("plan of this document: nothing to do" if not found.changes
            else f"plan of this document: {len(found.changes)} step(s), e.g. {'; '.join(found.changes[:3])}")


@click.command()
@click.argument("file", required=False, type=FILE)
@click.option("--to", "target", type=click.Choice(TARGETS), required=True, help="Format of the files.")
@click.option("--out", "-o", type=FILE, help="Directory for the files; standard output when not given.")
@json_option
def export(file: Path | None, target: str, out: Path | None, as_json: bool) -> int:
    """Write the uplink part of FILE as the host's own boot configuration.

    Without FILE: of the document in force. Addresses and routes are those that the host has now.
    """
    from kvmnet.adopt.export import WRITERS, unsaid, uplink_layout
    from kvmnet.api import Host
    from kvmnet.spec.load import load
    host = Host()
    document = load(file) if file else host.current()
    if document is None:
        raise KvmnetError("no document is applied on this host", "name one: kvmnet export --to netplan FILE")
    layout, notes = uplink_layout(document.spec, host.engine.observe({}).state)
    files = WRITERS[target](layout)
    notes += unsaid(layout).values() if target == "netplan" else ()
    for name, text in files.items():
        if out is not None:
            write(out / name, text)
        elif not as_json:
            click.echo(f"# {name}\n{text}" if len(files) > 1 else text, nl=False)
    if as_json:
        print_json({"format": 1, "files": files, "notes": notes})
    for note in notes:
        say(f"note: {note}")
    return 0


def write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise KvmnetError(f"cannot write {path}: {error.strerror}") from error
    say(f"wrote {path}")
