"""Neighbours of the uplink as a real lldpd on both ends of a wire tells them."""
from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from kvmnet.facts.lldp import link_neighbours
from kvmnet.host.clock import wait_until
from kvmnet.status import status
from lib.world import World, world

pytestmark = pytest.mark.daemon

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks: {lan: {mode: isolated, subnet: 192.168.1.0/24}}
"""


@pytest.fixture
def net() -> Iterator[World]:
    """The router and the host each with an lldpd; the router calls itself a switch."""
    with world() as made:
        made.paths.run.mkdir(parents=True, exist_ok=True)
        daemons = []
        try:
            for lead, place, nic, words in (((), made.paths.run / "lldpd.socket", "eth0", ()),
                                            (("ip", "netns", "exec", made.outside.netns), made.paths.run / "far", "segment",
                                             ("-S", "a switch\x1b[31m"))):
                daemons.append(subprocess.Popen([*lead, "lldpd", "-d", "-u", str(place), "-I", nic, *words],
                                                stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True))
            yield made
        finally:
            for daemon in daemons:
                os.killpg(daemon.pid, signal.SIGTERM)
                daemon.wait()


def test_neighbours_are_facts_and_in_the_status(net: World) -> None:
    heard = wait_until(lambda: link_neighbours(net.paths), 45, 0.2)
    (there,) = heard["eth0"]
    mac = json.loads(net.outside.run("ip -j link show segment"))[0]["address"]
    assert there.port == "segment" and there.port_id == mac and there.name == os.uname().nodename
    assert there.description == "a switch [31m", "what others say does not command the terminal"
    net.apply(DOCUMENT)
    found = status(net.host)
    assert found is not None and found.uplinks[0].neighbours == {"eth0": (there,)}
    assert found.to_json()["uplinks"][0]["neighbours"]["eth0"][0]["port"] == "segment"
    shown = net.cli("status").stdout
    assert "at eth0" in shown and "port segment" in shown and "\x1b[31m" not in shown


def test_nothing_breaks_without_it() -> None:
    with world() as bare:
        bare.apply(DOCUMENT)
        assert link_neighbours(bare.paths) == {}
        (bare.paths.run / "lldpd.socket").touch()
        assert link_neighbours(bare.paths) == {} and bare.drift() == []
        found = status(bare.host)
        assert found is not None and found.uplinks[0].neighbours == {} and found.uplinks[0].members == {"eth0": "up"}
