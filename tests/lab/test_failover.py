"""What a bond of kvmnet's is worth when a member fails: gaps, announcements and shares, measured by ``kvmnet bench failover``."""
from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmnet.bench.failover.bonds import read_bond
from kvmnet.bench.matrix import PORT, Seat, configuration, uplink
from kvmnet.bench.traffic.program import program
from kvmnet.bench.twoways import FAR, both_usable, far_lines, losing, near_lines
from kvmnet.cli.main import cli
from kvmnet.errors import ConflictError
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib.netns import batch, named_netns, sh
from lib.ways import carrying
from lib.world import World, world

pytestmark = pytest.mark.lab

PARTNER = "10.5.0.1"
Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def host() -> Iterator[World]:
    """A host with two more NICs, e0 and e1, to f0 and f1 of a switch; the host is 10.5.0.2 on e0."""
    with world() as made, named_netns(f"kvt-sw-{os.getpid()}") as switch:
        sh("".join(f"ip link add e{i} type veth peer name f{i} netns {switch}; ip link set e{i} up; " for i in (0, 1)))
        sh("ip addr add 10.5.0.2/24 dev e0")
        made.switch = switch  # type: ignore[attr-defined]
        yield made


def partner(switch: str, kind: str) -> None:
    """The far end: one link over f0 and f1 with its address."""
    sh(f"ip -n {switch} link add po0 type {kind}; "
       + "".join(f"ip -n {switch} link set f{i} master po0; ip -n {switch} link set f{i} up; " for i in (0, 1))
       + f"ip -n {switch} addr add {PARTNER}/24 dev po0; ip -n {switch} link set po0 up")


def document(options: str, bond: str = "active-backup") -> str:
    return f"version: 1\nuplinks: {{wan: {{members: [e0, e1], bond: {bond}, device: bond0, options: {options}}}}}\nnetworks: {{}}\n"


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """Runs ``kvmnet bench failover wan``; its JSON, with the rows by what they say of whom."""
    def run(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        code = cli.main(["bench", "failover", "wan", "--to", PARTNER, "--yes", "--json", *words], standalone_mode=False)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        print(found["subject"], *(f"{r['subject']} {r['what']} {r['values']} {r['unit']} {r['remark']}" for r in found["rows"]), sep="\n  ")
        assert code == found["exit_code"]
        assert not [m.name for m in read_bond("bond0").members if not m.usable], "every member was given back"
        return found | {"by": {(r["subject"], r["what"]): r for r in found["rows"]}}
    return run


def test_active_backup(host: World, bench: Bench) -> None:
    partner(host.switch, "bridge")
    host.apply(document("{miimon: 100, peer_notify: 1}"))
    found = bench("--times", "2", "--flows", "500")
    gap, told = found["by"]["e0", "gap at link loss"], found["by"]["e0", "announcements"]
    assert len(gap["values"]) == 2 and gap["least"] >= 10 and gap["most"] <= 10_000
    assert told["values"] == [2, 2] and "1 ARP of 10.5.0.2 by e1; 1 NA of fe80" in told["remark"], "as many as peer_notify"
    assert found["by"]["e0", "share"]["values"] == [100] and found["by"]["e1", "share"]["values"] == [0]
    assert found["machine"]["drivers"] == {"e0": "veth", "e1": "veth"} and found["settings"]["options"]["miimon"] == 100

    blind = bench("--times", "1", "--flows", "0", "--loss", "silent", "--limit", "2")
    assert blind["exit_code"] == 1 and blind["by"]["e0", "gap at silent loss"]["values"] == []
    killed_in_a_loss(bench)
    assert host.drift() == []

    sh(f"ip -n {host.switch} link set f1 down")
    wait_until(lambda: not read_bond("bond0").others("e0"), 20)
    with pytest.raises(ConflictError, match="e0 is the last member of bond0 with a carrier"):
        bench()
    sh(f"ip -n {host.switch} link set f1 up")

    host.apply(document(f"{{arp: {{targets: [{PARTNER}], interval: 100}}, peer_notify: 3}}"))
    seeing = bench("--times", "1", "--flows", "0", "--loss", "silent")
    assert "3 ARP of 10.5.0.2 by e1; 3 NA of fe80" in seeing["by"]["e0", "announcements"]["remark"]
    assert seeing["exit_code"] == 0 and 100 <= seeing["by"]["e0", "gap at silent loss"]["most"] <= 3000


def killed_in_a_loss(bench: Bench) -> None:
    """Ended in the middle by a signal that cannot be heard, and by one that can."""
    for number, loss, lost in ((signal.SIGKILL, "silent", lambda: "kvmnet_bench" in sh("nft list tables")),
                               (signal.SIGTERM, "link", lambda: not any(m.name == "e0" and m.up for m in read_bond("bond0").members))):
        child = os.fork()
        if child == 0:
            try:
                bench("--times", "1", "--loss", loss)
            finally:
                os._exit(3)
        wait_until(lost, 20, 0.1)
        os.kill(child, number)
        os.waitpid(child, 0)
        wait_until(lambda: not lost(), 20, 0.1)  # noqa: B023


def failures() -> list[int]:
    """How often each member has lost its carrier, by the bond's own count."""
    rows = json.loads(sh("ip -d -j link show master bond0"))
    return [row["linkinfo"]["info_slave_data"]["link_failure_count"] for row in rows]


def test_lacp(host: World, bench: Bench) -> None:
    partner(host.switch, "bond mode 802.3ad miimon 100 lacp_rate fast xmit_hash_policy layer3+4")
    host.apply(document("{lacp_rate: fast}", "802.3ad"))
    wait_until(lambda: all(m.usable for m in read_bond("bond0").members), 20, 0.2)
    assert "Number of ports: 2" in sh("cat /proc/net/bonding/bond0")
    wait_until(lambda: host.here.pings(PARTNER), 20)
    found = bench("--times", "1", "--flows", "4000")
    assert failures() == [1, 1], "each was lost once"
    for member in ("e0", "e1"):
        assert found["by"][member, "gap at link loss"]["most"] <= 10_000
        assert 45 <= found["by"][member, "share"]["median"] <= 55
    assert found["by"]["bond0", "balance"]["median"] >= 95

    silent = bench("--times", "1", "--flows", "0", "--loss", "silent", "--member", "e0")
    assert 1000 <= silent["by"]["e0", "gap at silent loss"]["most"] <= 30_000
    assert silent["exit_code"] == 0 and "nft" not in host.drift() and host.drift() == []


def test_each_way_of_bench_run_that_is_a_bond(tmp_path: Path) -> None:
    """A load goes by one member until that is lost, then by the other, and none of it is lost any more."""
    load = program(Paths(tmp_path, tmp_path))
    seats = [Seat(n, configuration(f"uplink={way}")) for n, way in enumerate(FAR)]
    with world() as host, named_netns(f"kvt-far-{os.getpid()}") as far:
        batch(*(line for seat in seats for line in near_lines(seat, far)))
        batch(*(line for seat in seats for line in far_lines(seat)), netns=far)
        host.apply("version: 1\nuplinks:\n" + "".join(f"  u{s.number}: {{{uplink(s)}}}\n" for s in seats) + "networks: {}\n")
        server = json.loads(sh(f"ip netns exec {far} {load} serve port={PORT} life=300"))["pid"]
        try:
            for seat in seats:
                both_usable(seat, host.paths, tmp_path)
                first = wait_until(lambda: carrying(load, seat), 40)  # noqa: B023 (asked at once)
                with losing(seat, host.paths, tmp_path, far):
                    wait_until(lambda: carrying(load, seat) not in ("", first), 40)  # noqa: B023
            assert host.drift() == []
        finally:
            os.kill(server, signal.SIGKILL)
