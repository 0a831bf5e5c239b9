"""The bare tools' side: the same objects by ``ip -batch``, ``nft -f``, ``tc -batch`` and dnsmasq's files alone.

What they are told is what kvmnet itself prints for the document (``kvmnet plan --commands``): the same
objects, by the fewest commands that we know. They are told it in files that lie ready, and they do
less: no daemon is started, nothing is looked at before or after, and nothing could be undone.

    python -m bench.bare record FILE FOLDER    write those files
    python -m bench.bare read FOLDER           the bulk reads, one after another, each parsed, since whoever
                                               has to know whether something is to be done has to look
"""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

GROUP = 4711
READS = (
    ("ip", "-json", "-details", "link"),
    ("ip", "-json", "address"),
    ("ip", "-json", "-details", "-4", "route", "show", "table", "all"),
    ("ip", "-json", "-details", "-6", "route", "show", "table", "all"),
    ("nft", "-j", "list", "table", "bridge", "kvmnet"),
    ("nft", "-j", "list", "table", "inet", "kvmnet"),
)
"""Table by table: ``nft -j list ruleset`` of nft 1.0.6 breaks off at a table with an owner."""


def record(document: Path, folder: Path) -> None:
    """Write the scripts that make the document's objects, those that remove them, and dnsmasq's files."""
    from kvmnet.api import Host
    from kvmnet.drivers.linux.resources import Link
    from kvmnet.engine.plan import Create

    host = Host()
    planned = host.plan(document)
    ip, nft, tc, files = [], [], [], 0
    for command in host.engine.dispatch.commands(planned.steps):
        if command.argv[:2] == ("ip", "-batch"):
            ip.append(command.stdin)
        elif command.argv[:2] == ("nft", "-f"):
            nft.append(command.stdin)
        elif command.argv[:2] == ("tc", "-batch"):
            tc.append(command.stdin)
        elif command.argv[0] == "tee":
            (folder / f"dnsmasq.{files}").write_text(command.stdin)
            files += 1
    links = [s.after.name for s in planned.steps if isinstance(s, Create) and isinstance(s.after, Link)]
    tables = [s.key.name for s in planned.steps if s.key.kind == "nft-table"]
    (folder / "make.ip").write_text("".join(ip))
    (folder / "make.nft").write_text("".join(nft))
    (folder / "make.tc").write_text("".join(tc))
    (folder / "remove.ip").write_text("".join(f"link set dev {name} group {GROUP}\n" for name in links)
                                      + f"link del group {GROUP}\n")
    (folder / "remove.nft").write_text("".join(f"delete table {name}\n" for name in tables))
    (folder / "make.sh").write_text("set -e\nnft -f make.nft\nip -batch make.ip\n"
                                    f"{'tc -batch make.tc' if tc else ''}\n"
                                    "mkdir -p made\ncp dnsmasq.* made\n")
    (folder / "remove.sh").write_text("set -e\nip -batch remove.ip\nnft -f remove.nft\nrm -r made\n")


def read(folder: Path) -> None:
    for argv in READS:
        text = subprocess.run(argv, capture_output=True, check=True).stdout
        if not json.loads(text or b"[]") and argv[1] != "-json":
            sys.exit(f"{' '.join(argv)}: nothing there")
    queues = json.loads(subprocess.run(("tc", "-json", "-raw", "qdisc", "show"), capture_output=True, check=True).stdout)
    asked = "".join(f"filter show dev {q['dev']} ingress\n" for q in queues if q["kind"] == "clsact")
    if asked:
        shown = subprocess.run(("tc", "-json", "-batch", "-"), input=asked.encode(), capture_output=True, check=True).stdout
        for line in shown.splitlines():
            json.loads(line or b"[]")
    for name in ("conf", "hosts", "names"):
        for file in folder.glob(f"*/{name}"):
            file.read_text().splitlines()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record", document, folder]:
            record(Path(document), Path(folder))
        case ["read", folder]:
            read(Path(folder))
        case _:
            sys.exit(__doc__)
