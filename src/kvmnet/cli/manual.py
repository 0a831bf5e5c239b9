"""The generated pages: the man page from the commands, the table of guest NICs from the models, the
page of the doctor's rules from their doc strings.

``python -m kvmnet.cli.manual`` writes them; tests/unit/test_documents.py fails when they are stale.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from kvmnet import __version__
from kvmnet.cli.main import COMMANDS, FULL, USAGE_ERROR, cli
from kvmnet.doctor.rules.table import SUBJECTS
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.resource import Resource
from kvmnet.errors import ApplyFailed, ConflictError, HostCannot, KvmnetError, RollbackFailed, SpecError
from kvmnet.records import fields
from kvmnet.spec.guests import Nic

MAN = Path("docs/kvmnet.8")
NICS = Path("docs/guide/nics.md")
DOCTOR = Path("docs/doctor.md")
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"

EXIT_CODES: tuple[tuple[int, str], ...] = (
    (0, "Done, or nothing to do."),
    (KvmnetError.exit_code, "Another error that the message explains; for check: a claim failed; for explain: nothing is known of the words; "
                               "for doctor: something blocks or degrades; for why: something is in the way; for capture: what was watched is gone; "
                               "for bench: a figure is not as it should be, or became worse."),
    (2, "plan: there are changes."),
    (3, "why: it cannot be told."),
    (SpecError.exit_code, "The document is wrong. Every problem is printed with its line; nothing was changed."),
    (HostCannot.exit_code, "This host lacks what the document needs: a tool, a kernel feature, a privilege."),
    (ConflictError.exit_code, "Something that is not kvmnet's is in the way, another change is under way, or the host "
                              "moved since the plan was made. Nothing was changed."),
    (ApplyFailed.exit_code, "A step failed and everything was rolled back."),
    (RollbackFailed.exit_code, "A step failed and the host could not be brought back; kvmnet recover tries again."),
    (USAGE_ERROR, "The command line is wrong."),
    (FULL, "The output cannot be written: the disk is full."),
    (130, "Stopped by Ctrl-C."),
)
"""Exit code -> meaning, as the man page and the guide say it."""

SUMMARY = "networking for KVM hosts, declared in one document"
DESCRIPTION = """\
kvmnet reads one document that says which networks a KVM host has, how they reach the outside, and which
network cards its guests get. It shows what would change (plan), makes the change in one transaction that is
undone when any step fails (apply), proves the result with packets (check), and takes it back (rollback,
destroy). Every guest card stands behind a guard that lets pass only its own MAC and addresses.

Where a command takes FILE and none is given, ./kvmnet.yaml is read, then /etc/kvmnet/kvmnet.yaml."""

ENVIRONMENT = (
    ("KVMNET_STATE_DIR", "Instead of /var/lib/kvmnet: history, addresses, leases, guest images."),
    ("KVMNET_RUN_DIR", "Instead of /run/kvmnet: journal, lock, and the files of running servers and guests."),
    ("KVMNET_ETC_DIR", "Instead of /etc, below which NetworkManager and systemd\\-networkd are told to leave kvmnet's "
                       "links alone."),
    ("KVMNET_IMAGE_DIR", "Where the tiny guest image is kept; below the state directory when not set."),
)
FILES = (
    ("/etc/kvmnet/kvmnet.yaml", "The document, if none is named and none lies in the working directory."),
    ("/var/lib/kvmnet/kvmnet.db", "Numbered revisions, and the addresses and MACs that were given out."),
    ("/run/kvmnet/journal.json", "The change that is being made, or waits for its confirmation."),
)
EXAMPLES = (
    ("kvmnet init", "Write a starter document for this host to kvmnet.yaml."),
    ("kvmnet plan", "Show what it would change."),
    ("kvmnet apply \\-\\-confirm 60", "Make the change; unless kvmnet confirm is run within a minute, it goes back by itself."),
    ("kvmnet check", "Prove with packets what the document promises."),
    ("kvmnet destroy", "Remove everything that kvmnet made and give back what it borrowed."),
)

SEE_ALSO = (
    "The guide and the reference of all options are in the folder docs of the source.", ".PP",
    ".BR ip (8),", ".BR nft (8),", ".BR dnsmasq (8),", ".BR qemu\\-system\\-x86_64 (1)",
)

DEVICE_OPTIONS: dict[str, tuple[str, ...]] = {
    "model": ("model",), "mac": ("mac",), "link": ("link",), "mtu": ("host_mtu",), "queues": ("queues", "multi_queue"),
    "vhost": ("vhost",), "rx_ring": ("rx_ring",), "tx_ring": ("tx_ring",), "packed": ("packed",), "rss": ("rss",),
    "vf": ("vf",), "failover": ("pair",), "offloads": ("offloads",), "boot": ("bootindex",), "pci": ("pci",),
}
"""Option of a NIC -> settings of its device and tap, whose declarations say how a guest notices."""
HOST_OPTIONS: dict[str, str] = {
    "network": "live: the tap moves to the other bridge. The guest asks DHCP again when its lease is renewed",
    "ip": "live: reservation and guard change at once, the guest learns its address when it asks DHCP again",
    "ip6": "live, as ip",
    "hostname": "live: DNS at once, the guest's own name with its next lease",
    "guard": "live", "extra": "live", "trunk": "live", "untagged": "live", "isolated": "live",
    "rate": "live, without a lost packet", "qdisc": "live; frames that wait are lost", "mark": "live", "trust": "live", "groups": "live", "limits": "live", "receives": "live",
    "name": "another NIC: the old one is unplugged, the new one is plugged in",
}
"""Options that only the host's side knows."""
NOTES = {"mtu": " above the MTU that it was made with (virtio; others: live). Up to there, and down, live: by the guest's "
                "agent, DHCP and router advertisements",
         "pci": " (machine q35: restart of the guest)"}
HOW = {
    "live": "live", "replug": "replug: the card is unplugged and plugged in again", "restart": "restart of the guest",
}


def nic_table() -> str:
    """Every option of a NIC with how a running guest notices a change of it, as a Markdown table."""
    rows = ["| option | what a running guest notices |", "|---|---|"]
    rows += [f"| `{name}` | {effect(name)}{NOTES.get(name, '')} |" for name in Nic.model_fields]
    return "\n".join(rows)


def effect(option: str) -> str:
    """How a running guest notices a change of *option*: the gravest of the settings that it stands for."""
    if option in HOST_OPTIONS:
        return HOST_OPTIONS[option]
    declared = {**_guest_effects(Link), **_guest_effects(GuestNic)}
    found = [declared[name] for name in DEVICE_OPTIONS[option]]
    return HOW[max(found, key=tuple(HOW).index)]


def _guest_effects(resource: type[Resource]) -> dict[str, str]:
    return {f.name: f.metadata["guest"] for f in fields(resource) if f.metadata.get("guest")}


def man_page() -> str:
    """kvmnet(8), in the man macros of roff(7)."""
    lines = [f'.TH KVMNET 8 "" "kvmnet {__version__}" "System administration"',
             ".SH NAME", f"kvmnet \\- {_roff(SUMMARY)}",
             ".SH SYNOPSIS", ".B kvmnet", "[\\-h | \\-\\-version]", ".I COMMAND", "[OPTIONS] [ARGUMENTS]",
             ".SH DESCRIPTION", *_paragraphs(DESCRIPTION), ".SH COMMANDS"]
    context = click.Context(cli, info_name="kvmnet")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        lines += _command(name, command, context)
    lines += [".SH EXIT STATUS", *_items((str(code), _roff(text)) for code, text in EXIT_CODES),
              ".SH ENVIRONMENT", *_items(ENVIRONMENT), ".SH FILES", *_items(FILES), ".SH EXAMPLES", *_items(EXAMPLES),
              ".SH SEE ALSO", *SEE_ALSO]
    return "\n".join(lines) + "\n"


def _command(path: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    if isinstance(command, click.Group):
        yield f'.SS "kvmnet {path} COMMAND"'
        yield from _paragraphs(command.help or "")
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(f"{path} {name}", inner, context)
        return
    words = " ".join(command.collect_usage_pieces(context))
    yield f'.SS "kvmnet {path} {_roff(words)}"'
    yield from _paragraphs(command.help or "")
    records = [record for p in command.params if isinstance(p, click.Option)
               and (record := p.get_help_record(context)) is not None]
    yield from _items((_roff(flags), _roff(text)) for flags, text in records)


def _items(pairs: Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]) -> Iterator[str]:
    for head, text in pairs:
        yield from (".TP", f".B {head}", _guarded(text))


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        lines = paragraph.splitlines()
        as_it_is = lines[0] == "\b"    # click's mark of a paragraph that is not filled
        if as_it_is:
            yield ".nf"
        yield from (_guarded(_roff(line)) for line in lines[as_it_is:])
        if as_it_is:
            yield ".fi"


def _roff(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")


def _guarded(line: str) -> str:
    """A line that roff does not take for a request."""
    return "\\&" + line if line.startswith((".", "'")) else line


def doctor_page() -> str:
    """What ``kvmnet doctor`` knows, from the doc strings of its rules."""
    lines = ["# What the doctor knows", "", "<!-- generated by ./dev docs from src/kvmnet/doctor/rules -->", "",
             "`kvmnet doctor` judges a capture of the host (`kvmnet facts`) by these rules. How to use it: [When something is wrong](guide/troubleshooting.md#the-whole-host)."]
    for subject, rules in SUBJECTS.items():
        lines += ["", f"## {subject}", ""]
        lines += [f"* **`{rule.__name__.replace('_', '-')}`** {' '.join((rule.__doc__ or '').split())}" for rule in rules]
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The guide's page with the present table between its marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{nic_table()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write the pages below the working directory, the root of a checkout."""
    MAN.write_text(man_page(), encoding="utf-8")
    DOCTOR.write_text(doctor_page(), encoding="utf-8")
    NICS.write_text(with_table(NICS.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
