"""An MTU from the wire to a running guest: lowered live, raised by making its card anew, proved at each step."""
from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from kvmnet.check.model import Verdict
from kvmnet.guests.image import Image
from kvmnet.host.clock import wait_until
from lib.netns import sh
from lib.world import HOST, OUTSIDE, World, world

pytestmark = pytest.mark.guest

MAC = "52:54:00:00:90:00"


@pytest.fixture
def host(tiny: Image) -> Iterator[World]:
    """A host whose wire takes 9000 bytes."""
    with world() as made:
        sh(f"ip link set eth0 mtu 9000; ip -n {made.outside.netns} link set segment mtu 9000")
        try:
            yield made
        finally:
            made.host.stop_guests(["web"], lambda line: None, 0.1)


def document(mtu: int) -> str:
    return (f"version: 1\nuplinks: {{wan: {{device: eth0, mtu: {mtu}}}}}\n"
            "networks: {lan: {mode: nat, uplink: wan, subnet: 10.6.0.0/24}}\n"
            f"vms: {{web: {{run: {{image: tiny, memory: 256M, accel: tcg}}, nics: [{{network: lan, ip: 10.6.0.9, mac: '{MAC}'}}]}}}}\n")


def seen(host: World) -> tuple[int, str, str]:
    """What the guest has: MTU, name and number of the link, PCI address."""
    code, out, err = host.host.execute("web", ["/bin/sh", "-c", f"l=$(nic {MAC}) && cat /sys/class/net/$l/mtu && "
                                               "echo $l $(cat /sys/class/net/$l/ifindex) && readlink -f /sys/class/net/$l/device"])
    lines = out.splitlines()
    return (int(lines[0]), lines[1], lines[2]) if code == 0 and len(lines) == 3 else (0, "", err)


def pings(host: World, address: str, size: int) -> bool:
    """Whether an IPv4 packet of *size* bytes from the guest is answered."""
    return host.host.execute("web", ["ping", "-c", "1", "-W", "2", "-s", str(size - 28), address])[0] == 0


def holds(host: World, mtu: int) -> None:
    """Exactly this MTU, everywhere: read, and proved by packets with DF of just that size and of one byte more."""
    links = {item["ifname"]: item["mtu"] for item in json.loads(sh("ip -j link"))}
    assert {links[n] for n in ("eth0", "kvb-lan", "kvt-web-0")} == {mtu}
    report = host.host.check()
    found = {(c.subject, c.name): c for c in report.claims if c.name.startswith("mtu")}
    assert {k: c.evidence for k, c in found.items() if c.verdict is not Verdict.PASS} == {}
    assert {k for k in found if k[0] == "web/nic0"} == {("web/nic0", "mtu4"), ("web/nic0", "mtu-outside4")}
    assert all(f"{mtu} bytes" in c.evidence for c in found.values())
    assert pings(host, OUTSIDE, mtu) and pings(host, HOST, mtu)
    assert host.here.pings("10.6.0.9", mtu - 28) and not host.here.pings("10.6.0.9", mtu - 27, timeout=1)


def test_down_live_and_up_by_replug(host: World) -> None:
    host.apply(document(1400))
    host.host.start_guests(["web"], lambda line: None)
    wait_until(lambda: pings(host, HOST, 100), 40)
    first = seen(host)
    assert first[0] == 1400
    holds(host, 1400)

    planned = host.plan(document(1300))
    assert [n for n, _ in effects(planned.steps)] == ["Update"]
    host.host.apply(planned)
    assert seen(host) == (1300, *first[1:]), "the same card, at once"
    holds(host, 1300)

    guard = sh("nft list set bridge kvmnet flow4")
    planned = host.plan(document(9000))
    assert [n for n, _ in effects(planned.steps)] == ["Delete", "Create"]
    host.host.apply(planned)
    wait_until(lambda: seen(host)[0] == 9000, 20)
    wait_until(lambda: pings(host, HOST, 100), 20)
    mtu, link, place = seen(host)
    assert (mtu, link.split()[0], place.rpartition("/virtio")[0]) == (9000, first[1].split()[0], first[2].rpartition("/virtio")[0])
    assert sh("nft list set bridge kvmnet flow4") == guard
    holds(host, 9000)
    assert host.drift() == []


def effects(steps: object) -> list[tuple[str, str]]:
    return [(type(s).__name__, s.key.name) for s in steps if s.key.kind == "guest-nic"]  # type: ignore[attr-defined]
