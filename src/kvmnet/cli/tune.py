"""kvmnet tune: what a profile would change on this host, with reasons; measured on demand."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmnet.cli.output import json_option, print_json, say, table

if TYPE_CHECKING:
    from kvmnet.spec.models import Spec
    from kvmnet.tune.proposals import Proposal
    from kvmnet.tune.prove import Proof


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--profile", type=click.Choice(["throughput", "latency", "density", "router"]), default="throughput", show_default=True,
              help="What the host is to be good at.")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print only the part tuning: for the document.")
@click.option("--refused", is_flag=True, help="Also what is often named for this and not proposed, with the reason.")
@click.option("--prove", "proved", is_flag=True,
              help="Measure the proposals with real guests, and say which help beyond the noise (minutes).")
@click.option("--machine", is_flag=True, help="With --prove: settings of the whole machine may be changed too, for their turns; they are "
              "given back after each, also when this is killed.")
@click.option("--write", is_flag=True, help="Write the kernel settings into FILE, in its part tuning:; with --prove those that helped, and options of NICs and "
              "guests that helped.")
@click.option("--rounds", type=click.IntRange(6, 200), default=6, show_default=True, help="With --prove: turns of each.")
@json_option
def tune(file: Path | None, profile: str, as_yaml: bool, refused: bool, proved: bool, machine: bool, write: bool,
         rounds: int, as_json: bool) -> int:
    """Propose settings for this host and the NICs of FILE, or of the applied document. Changes nothing on this host.

    Each proposal says what it is now, what it would be, why, from which source, and what it risks. What you take goes into
    the document: kernel settings to tuning: (--yaml prints it), the others to the NIC or the uplink. So plan shows it, apply makes it in one
    transaction, status sees drift, rollback and destroy give it back.
    """
    from kvmnet.guests import hugepages
    from kvmnet.host.paths import Paths
    from kvmnet.spec.knobs import Profile
    from kvmnet.tune import look
    from kvmnet.tune.memory import memory
    from kvmnet.tune.proposals import fragment, left_alone, nics, pins, settings
    from kvmnet.tune.prove import kept, kept_options, prove
    from kvmnet.tune.queueing import queueing, queues
    from kvmnet.tune.uplinks import uplinks
    if write and file is None:
        raise click.UsageError("--write needs the FILE to write into")
    spec, wanted = document(file), Profile(profile)
    values, about = look.values(), list(look.machine(Paths.from_environment()))
    here = list(settings(wanted, values, look.frozen()))
    cards = list(nics(wanted, spec, look.vhost())) if spec else []
    if spec:
        cards += pins(wanted, spec, len(os.sched_getaffinity(0)))
        below = look.hardware(spec)
        cards += uplinks(wanted, spec, below, len(os.sched_getaffinity(0)))
        about += [*look.placement(below), *look.offloads(below), *look.softirqs()]
        cards += memory(wanted, spec, *hugepages.seen(), *look.nodes(spec))
        listed, lacks = look.disciplines(), look.lacks_fair(Paths.from_environment())
        cards += queues(wanted, spec, listed, lacks)
        about += queueing(below, listed, lacks)
    about += look.guests({name: status.pid for name, status in running().items()})
    about += look.inside(Paths.from_environment())
    part = {p.name.removeprefix("tuning."): p.proposed for p in here if not p.lacking}
    proofs = prove([*here, *cards], wanted, rounds, say, machine) if proved else []
    helped = kept(here, proofs)
    if proved:
        part = {name: value for name, value in part.items() if name in helped}
    if write and file is not None:
        written(file, part, {name: remark(proof) for name, proof in helped.items()}, kept_options(cards, proofs))
    if as_yaml:
        click.echo(fragment({**(spec.tuning if spec else {}), **part}), nl=False)
        return 0
    if as_json:
        print_json({"profile": profile, "proposals": [p.to_json() for p in (*here, *cards)], "refused": dict(left_alone(values)),
                    "machine": [dict(zip(("what", "value", "meaning"), row, strict=True)) for row in about],
                    "proofs": [p.to_json() for p in proofs]})
        return 0
    table("this host", ("what", "is", "meaning"), about)
    if here or cards:
        table(f"profile {profile}", ("knob", "now", "proposed", "why", "risk", "source"), [row(p) for p in (*here, *cards)],
              spare=("source",))
    else:
        click.echo(f"profile {profile}: nothing to propose")
    if refused:
        table("not proposed", ("setting", "why"), list(left_alone(values)))
    if proofs:
        table("measured", ("change", "of", "verdict", "measured"), [proof_row(p) for p in proofs])
    elif proved:
        click.echo("nothing to measure: no proposal is one that guests' traffic shows")
    if part and not write:
        click.echo(f"kvmnet tune {'--prove ' if proved else ''}--write FILE writes the kernel settings into the document, --yaml prints them"
                   + ("" if proved else "; --prove measures the proposals"))
    return 0


def running() -> Mapping[str, Any]:
    """Guests that kvmnet runs on this host."""
    from kvmnet.api import Host
    return Host().running()


def written(file: Path, part: dict[str, str], remarks: dict[str, str], options: dict[str, str]) -> None:
    """Write kernel settings and *options* by their paths into the document; nothing where there is nothing to write."""
    from kvmnet.host.files import write_durably
    from kvmnet.tune.options import with_options
    from kvmnet.tune.written import with_tuning
    if not part and not options:
        say(f"nothing to write into {file}")
        return
    mode = file.stat().st_mode & 0o777
    text = with_options(file.read_text(encoding="utf-8"), options, str(file))
    write_durably(file, with_tuning(text, part, remarks, str(file)) if part else text, mode)
    say(f"written into {file}: {', '.join([*part, *options])}; kvmnet apply {file} makes it so, kvmnet rollback takes it back")


def remark(proof: Proof) -> str:
    return f"kvmnet tune --prove: {'; '.join(said for said in proof.said if said.endswith('better')) or 'better'}"


def row(p: Proposal) -> tuple[str, ...]:
    return p.name, p.now or "-", f"{p.proposed} ({p.lacking})" if p.lacking else p.proposed, p.why, p.risk, p.source


def proof_row(p: Proof) -> tuple[str, ...]:
    return p.change, p.base or "defaults", "keep" if p.kept else "leave", "; ".join(p.said)


def document(file: Path | None) -> Spec | None:
    """The document that was named, or is applied; None for neither."""
    if file is not None:
        from kvmnet.spec.load import load
        return load(file).spec
    from kvmnet.api import Host
    found = Host().current()
    return found.spec if found else None
