"""Commands that say what is broken: facts."""
from __future__ import annotations

import json

import click


@click.command()
def facts() -> int:
    """The whole network of this host as one JSON document, without secrets.

    A support bundle: links, addresses, routes, rules of every firewall, forwarding tables, who holds which tap, guests,
    settings, counters. Reading changes nothing.
    """
    from kvmnet.facts.capture import capture
    from kvmnet.host.paths import Paths
    click.echo(json.dumps(capture(Paths.from_environment()), sort_keys=True, default=list))
    return 0
