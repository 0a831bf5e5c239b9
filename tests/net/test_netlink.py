"""What the kernel is asked directly, against what the tools show of the same host."""
from __future__ import annotations

import json
from collections.abc import Callable
from socket import if_nametoindex

import pytest

from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.linux.resources import Neighbour, ProxyNeighbour
from kvmnet.drivers.mirror.driver import hooks
from kvmnet.host.netlink import disciplines, proxied, settled
from lib.netns import sh

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]


def test_disciplines_are_those_that_tc_shows() -> None:
    sh("for i in 0 1 2 3; do ip link add v$i type veth peer name w$i; ip link set v$i up; done")
    assert disciplines() == {} == hooks()
    sh("tc qdisc add dev v0 clsact && tc qdisc add dev v1 ingress && tc qdisc add dev v1 root tbf rate 1mbit burst 10k limit 20k && "
       "tc qdisc add dev v2 root handle 7: htb && tc class add dev v2 parent 7: classid 7:1 htb rate 1mbit && "
       "tc qdisc add dev v2 parent 7:1 handle 8: bfifo")
    shown: dict[int, set[str]] = {}
    for item in json.loads(sh("tc -json qdisc show")):
        if item["handle"] != "0:":
            shown.setdefault(if_nametoindex(item["dev"]), set()).add(item["kind"])
    assert disciplines() == shown
    assert {kind for kinds in shown.values() for kind in kinds} == {"clsact", "ingress", "tbf", "htb", "bfifo"}
    assert hooks() == {"v0": "clsact", "v1": "ingress"}


@pytest.mark.parametrize(("command", "there", "kind"), [
    ("ip neigh add proxy 10.0.0.9 dev v0", proxied, ProxyNeighbour),
    ("ip neigh add proxy 2001:db8::9 dev v0", proxied, ProxyNeighbour),
    ("ip neigh add 10.0.0.7 lladdr 02:00:00:00:00:07 dev v0 nud permanent", settled, Neighbour),
    ("ip neigh add 2001:db8::7 lladdr 02:00:00:00:00:07 dev v0 nud permanent", settled, Neighbour)])
def test_neighbours_are_noticed(command: str, there: Callable[[], bool], kind: type) -> None:
    """Also beside others that are none of ours: one that was heard, and no more than that."""
    sh("ip link add v0 type veth peer name w0 && ip link set v0 up && ip link set w0 up && ip addr add 10.0.0.1/24 dev v0 && "
       "ip neigh add 10.0.0.8 lladdr 02:00:00:00:00:08 dev v0 nud reachable")
    assert not there() and not [r for r in LinuxDriver().observe({}).state.values() if isinstance(r, kind)]
    sh(command)
    assert there()
    assert [r.dev for r in LinuxDriver().observe({}).state.values() if isinstance(r, kind)] == ["v0"]
