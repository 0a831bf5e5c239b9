"""A packet that the kernel drops where no rule says so, and what is read of its reason."""
from __future__ import annotations

from kvmnet.doctor.packet import ICMP, made
from kvmnet.host.clock import wait_until
from kvmnet.host.drops import Dropped, DropTrace
from kvmnet.host.trace import entrance, inner_end
from lib.netns import new_netns, sh


def dropped_and_passed() -> tuple[list[Dropped], list[Dropped], str]:
    """What the kernel says of packets that a policy of IPsec drops where they are sent on, of the same without it, and why it says nothing."""
    with new_netns():
        sh("set -e; sysctl -qw net.ipv4.ip_forward=1; ip link add br0 address 02:66:00:00:00:01 type bridge forward_delay 0; ip link set br0 up; ip addr add 10.66.0.1/24 dev br0;"
           "ip link add p1 type veth peer name p2; ip link set p1 master br0 up; ip link set p2 up; ip link add u1 type veth peer name u2; ip link set u1 up; ip link set u2 up;"
           "ip addr add 10.77.0.2/24 dev u1; ip neigh add 10.77.0.1 lladdr 02:00:00:00:00:09 dev u1; ip xfrm policy add dir fwd src 10.66.0.11/32 dst 10.77.0.1/32 action block")
        wait_until(lambda: "state forwarding" in sh("bridge link show dev p1"), 30)
        packet = made(("02:66:00:00:00:01", "02:66:00:00:00:11"), "10.66.0.11", "10.77.0.1", ICMP, (7, 0))
        found = []
        for _ in range(2):
            with DropTrace(packet.protocol) as trace, entrance("p1") as place:
                for _ in range(3):
                    with trace.sending():
                        place.send(packet.frame)
                found.append(trace.found(inner_end()))
            sh("ip xfrm policy flush")
        return found[0], found[1], trace.impossible
