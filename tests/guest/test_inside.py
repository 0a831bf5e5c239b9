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
from lib.netns import sh
from lib.world import HOST, World, world

pytestmark = pytest.mark.guest
IP, GATEWAY, NESTED = "10.6.0.9", "10.6.0.1", "10.8.0.0/24"
DOCUMENT = f"""
version: 1
uplinks: {{wan: {{device: eth0}}}}
networks: {{lan: {{mode: nat, uplink: wan, subnet: 10.6.0.0/24}}}}
vms: {{web: {{run: {{image: tiny, memory: 256M, accel: tcg, cpus: 2}}, nics: [{{network: lan, ip: {IP}, queues: 2, extra: {{addresses: [{NESTED}]}}}}]}}}}
"""


def moved(before: str, after: str) -> str:
    """Routes by an address go with it."""
    return f"ip addr del {before}/24 dev eth0; ip addr add {after}/24 dev eth0; ip route replace default via {GATEWAY} dev eth0"


BRIDGE = "ip link add virbr0 type bridge; ip link set virbr0 up"
FAULTS = {
    # code: (what breaks it, what mends it where busybox does not know the printed cure)
    "guest-without-route": ("ip route del default", ""),
    "guest-wrong-neighbour": (f"arp -i eth0 -s {GATEWAY} 02:de:ad:00:00:01", f"arp -i eth0 -d {GATEWAY}"),
    "guest-mtu": ("ip link set eth0 mtu 1400", ""),
    "guest-other-address": (moved(IP, "10.6.0.77"), moved("10.6.0.77", IP)),
    "guest-subnet-overlap": (f"{BRIDGE}; ip addr add {GATEWAY}/24 dev virbr0", "ip link del virbr0"),
    "guest-nic-down": ("ip link set eth0 down", f"ip link set eth0 up; ip route replace default via {GATEWAY} dev eth0"),
}
SLOW = {"guest-queues-unused": "ethtool -L eth0 combined 1", "guest-offloads-off": "ethtool -K eth0 tx off"}
"""What loses no packet."""
FAULTS |= {code: (breaks, "") for code, breaks in SLOW.items()}


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
        return scene if scene.inners and all("routes" in inner.inside for inner in scene.inners) else None
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
        if code not in SLOW:
            assert next(iter(bad(why(scene, "web", "outside", Probe()).findings))) == code
        if mends:
            assert run(host, mends) == 0, mends
        else:
            cured(host, found[code])
    assert bad(examine(look(host))) == {} and run(host, f"ping -c 1 -W 5 {HOST}") == 0
    large_frames_of_a_container(host)


def cured(host: World, finding: Finding) -> str:
    """The first printed cure, run in the guest; the command."""
    command = finding.fix[0].partition("#")[0].removeprefix("kvmnet vm exec web ").strip()
    assert finding.fix[0].startswith("kvmnet vm exec web ") and run(host, command) == 0, finding.fix
    return command


CONTAINER = (f"echo 1 > /proc/sys/net/ipv4/ip_forward; {BRIDGE}; ip link set virbr0 mtu 9000; ip addr add 10.8.0.1/24 dev virbr0; ip link add v0 type veth; "
             "ip link set v0 mtu 9000; ip link set v0 master virbr0; ip link set v0 up; unshare -n sleep 600 > /dev/null 2>&1 & echo $! > /run/container; "
             "until [ $(readlink /proc/$!/ns/net) != $(readlink /proc/self/ns/net) ]; do usleep 20000; done; "
             "ip link set veth0 netns $(cat /run/container); "
             "nsenter -t $(cat /run/container) -n sh -c 'ip link set veth0 mtu 9000; ip addr add 10.8.0.2/24 dev veth0; ip link set veth0 up; ip route add default via 10.8.0.1'")
"""A container behind a bridge of the guest's, with larger frames than the guest's card takes."""
SILENT = "ip rule add iif lo to 10.8.0.0/24 type unreachable"
"""What the guest itself has to say to its containers is lost, that packets are too large as well."""


def large_frames_of_a_container(host: World) -> None:
    def passes(size: int) -> bool:
        return run(host, f"nsenter -t $(cat /run/container) -n ping -c 1 -W 2 -s {size} {GATEWAY}") == 0
    assert run(host, CONTAINER) == 0 and run(host, SILENT) == 0
    sh(f"ip route add {NESTED} via {IP}")
    wait_until(lambda: passes(100), 40)
    assert not passes(4000)
    found = bad(examine(look(host)))
    assert list(found) == ["guest-nested-mtu"], found
    within = cured(host, found["guest-nested-mtu"]).replace("virbr0", "veth0")
    assert run(host, f"nsenter -t $(cat /run/container) -n {within}") == 0     # "and of what is in it"
    wait_until(lambda: passes(4000), 40)
    assert bad(examine(look(host))) == {}
