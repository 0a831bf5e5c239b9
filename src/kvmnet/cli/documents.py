"""Commands about the document itself: init, schema."""
from __future__ import annotations

from pathlib import Path

import click

from kvmnet.errors import KvmnetError


@click.command()
@click.argument("file", default="kvmnet.yaml", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--uplink", metavar="DEVICE", help="NIC of this host that leads outside; the one with the default route when not given.")
@click.option("--force", is_flag=True, help="Write over an existing file.")
def init(file: Path, uplink: str | None, force: bool) -> None:
    """Write a commented starter document to FILE (kvmnet.yaml when not given, - for standard output)."""
    from kvmnet.facts.collect import default_device
    from kvmnet.spec.starter import starter
    text = starter(uplink or default_device())
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    try:
        if file.exists() and not force:
            raise KvmnetError(f"{file} exists already", "add --force to write over it, or name another file")
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise KvmnetError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"wrote {file}; next: kvmnet plan {file}", err=True)


@click.command()
def schema() -> None:
    """Print the document's JSON Schema, for editors that complete and check YAML.

    \b
    kvmnet schema > kvmnet.schema.json
    First line of the document: # yaml-language-server: $schema=kvmnet.schema.json
    """
    import json

    from kvmnet.spec.schema import schema as document_schema
    click.echo(json.dumps(document_schema(), indent=2))
