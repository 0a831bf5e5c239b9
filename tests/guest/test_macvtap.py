"""A real guest on a macvtap: started with two queues, a card added live, DHCP from the host's macvlan."""
from __future__ import annotations

import pytest

from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.guests.image import Image
from kvmnet.guests.launch import execute, wait_for_agent
from kvmnet.host.clock import wait_until
from lib.netns import sh
from lib.qemu import PATIENCE
from lib.world import OUTSIDE, ROUTER, World, snapshot, steady, unchanged, world

pytestmark = pytest.mark.guest

PLACE = "192.0.2.250"
DOCUMENT = """
version: 1
uplinks: {{wan: {{device: eth0}}, second: {{device: eth1}}}}
networks:
  lan: {{mode: macvtap, uplink: wan, subnet: 192.0.2.0/24, gateway: 192.0.2.1, address: 192.0.2.250, pool: 192.0.2.100-192.0.2.120}}
  own: {{mode: macvtap, macvtap: passthru, uplink: second, subnet: 10.7.0.0/24}}
vms:
  web1:
    run: {{memory: 384M, cpus: 2, image: tiny, accel: tcg}}
    nics: [{{network: lan, queues: 2}}{0}]
"""


def run(here: World, script: str) -> tuple[int, str]:
    done = execute("web1", script, here.paths)
    return done[0], done[1]


def address(here: World) -> str:
    document = here.host.current()
    assert document
    compiled, _ = here.host.compile(document, here.host.facts(here.host.engine.observe({}), document))
    return compiled.segments["lan"].nics[0].ip


def test_a_guest_on_macvtaps(tiny: Image) -> None:
    with world() as here:
        sh("ip link add eth1 type veth peer name far; ip link set eth1 up; ip link set far up; ip addr add 10.7.0.9/24 dev far")
        steady()
        before = snapshot()
        here.apply(DOCUMENT.format(""))
        here.host.start_guests(["web1"], lambda words: None)
        wait_for_agent("web1", here.paths, PATIENCE)
        own = address(here)
        wait_until(lambda: own in run(here, "ip -o addr")[1], 30, 0.3)
        assert here.drift() == [], "what QEMU has is what is wanted: macvtap, two queues"
        for there in (PLACE, ROUTER, OUTSIDE):
            assert run(here, f"ping -c 1 -w 20 {there}")[0] == 0, there
        assert here.here.pings(own) and here.outside.pings(own)
        spoof = f"ip addr add 192.0.2.77/24 dev $(ls /sys/class/net | grep -v lo | head -1); ping -c 1 -W 1 -I 192.0.2.77 {ROUTER}"
        assert run(here, spoof)[0] != 0
        assert NftablesDriver(here.paths).dropped()["kvt-web1-0"], "the guard has counted what it dropped"
        here.apply(DOCUMENT.format(", {network: own, model: e1000e, ip: 10.7.0.2}"))
        assert here.drift() == []
        script = ("for i in $(seq 40); do n=$(ls /sys/class/net | grep -v lo | wc -l); [ $n -ge 2 ] && break; sleep 0.5; done; "
                  "for d in $(ls /sys/class/net | grep -v lo); do ip addr show $d | grep -q 192.0.2 || new=$d; done; ip link set $new up; "
                  "for i in $(seq 20); do ip addr replace 10.7.0.2/24 dev $new; ping -c 1 -W 1 10.7.0.9 && exit 0; done; ip addr; exit 1")
        code, said = run(here, script)  # its link takes seconds, and the guest's own DHCP client clears the card meanwhile
        assert code == 0, said
        here.host.stop_guests(["web1"], lambda words: None, 5)
        here.destroy()
        unchanged(before)
