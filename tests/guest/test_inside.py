"""What is wrong inside a real guest is found from the host, through its agent, and nothing is found where nothing is wrong."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmnet.doctor.finding import Finding, Severity
from kvmnet.doctor.rules.table import examine
from kvmnet.doctor.scene import Scene, read
from kvmnet.doctor.why import Probe, why
from kvmnet.facts.capture import capture
from kvmnet.guests.image import Image
from kvmnet.host.clock import wait_until
from lib.world import HOST, World, world

pytestmark = pytest.mark.guest
IP, GATEWAY = "10.6.0.9", "10.6.0.1"
DOCUMENT = f"""
version: 1
uplinks: {{wan: {{device: eth0}}}}
networks: {{lan: {{mode: nat, uplink: wan, subnet: 10.6.0.0/24}}}}
vms: {{web: {{run: {{image: tiny, memory: 256M, accel: tcg, cpus: 2}}, nics: [{{network: lan, ip: {IP}, queues: 2}}]}}}}
"""


def moved(before: str, after: str) -> str:
    """Routes by an address go with it."""
    return f"ip addr del {before}/24 dev eth0; ip addr add {after}/24 dev eth0; ip route replace default via {GATEWAY} dev eth0"


FAULTS = {
    # code: (what breaks it, what mends it)
    "guest-without-route": ("ip route del default", f"ip route add default via {GATEWAY} dev eth0"),
    "guest-wrong-neighbour": (f"arp -i eth0 -s {GATEWAY} 02:de:ad:00:00:01", f"arp -i eth0 -d {GATEWAY}"),
    "guest-mtu": ("ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500"),
    "guest-other-address": (moved(IP, "10.6.0.77"), moved("10.6.0.77", IP)),
    "guest-nic-down": ("ip link set eth0 down", f"ip link set eth0 up; ip route replace default via {GATEWAY} dev eth0"),
}


@pytest.fixture
def host(tiny: Image) -> Iterator[World]:
    with world() as made:
        made.apply(DOCUMENT)
        made.host.start_guests(["web"], lambda line: None)
        try:
            wait_until(lambda: run(made, f"ping -c 1 -W 2 {GATEWAY}") == 0, 60)
            assert run(made, "killall udhcpc dhclient; true") == 0     # nobody puts back what is broken here
            yield made
        finally:
            made.host.stop_guests(["web"], lambda line: None, 0.1)


def run(host: World, command: str) -> int:
    return host.host.execute("web", ["/bin/sh", "-c", command])[0]


def look(host: World) -> Scene:
    """A capture in which the guest has told: a busy machine may be late once."""
    def told() -> Scene | None:
        scene = read(capture(host.host.paths))
        return scene if scene.inners else None
    found = wait_until(told, 60)
    assert found
    return found


def bad(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    return {f.code: f for f in findings if f.severity in (Severity.BLOCKS, Severity.DEGRADES) or f.code.startswith("guest-")}


def test_what_is_broken_inside_is_found_and_what_is_mended_is_not(host: World) -> None:
    scene = look(host)
    inner, = scene.inners
    assert (inner.title, inner.link["driver"], inner.link["queues"]) == ("web eth0", "virtio_net", 2) and "mq" in inner.nic["negotiated"]["taken"]
    assert bad(examine(scene)) == {}
    report = why(scene, "web", HOST, Probe())
    assert report.exit_code == 0, report.findings
    assert not bad(report.findings) and any(h.what == "inside" for h in report.there)
    for code, (breaks, mends) in FAULTS.items():
        assert run(host, breaks) == 0, breaks
        scene = look(host)
        found = bad(examine(scene))
        assert list(found) == [code], found
        on_path = bad(why(scene, "web", "outside", Probe()).findings)
        assert code in on_path and next(iter(on_path)) == code, on_path
        assert run(host, mends) == 0, mends
    assert bad(examine(look(host))) == {} and run(host, f"ping -c 1 -W 5 {HOST}") == 0
