"""An uplink of two ways with RSTP as ``kvmnet bench run`` makes it, to a switch that is a host of its own."""
from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from kvmnet.bench.matrix import Seat, configuration, network, uplink
from kvmnet.bench.traffic.program import program
from kvmnet.bench.twoways import both_usable, build_switch, losing, near_lines, switch
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib.netns import batch, sh
from lib.ways import carrying
from lib.world import world

pytestmark = pytest.mark.net


def test_a_load_over_rstp_loses_its_way_and_gets_the_other(tmp_path: Path) -> None:
    seat, load = Seat(7, configuration("uplink=rstp mode=bridge")), program(Paths(tmp_path, tmp_path))
    where = switch(seat, tmp_path)

    with world() as host:
        where.make()
        try:
            batch(*near_lines(seat, where.netns), *(f"link set {member} up" for member in seat.members))
            build_switch(seat, tmp_path, load, 300)
            host.apply(f"version: 1\nuplinks: {{u7: {{{uplink(seat)}}}}}\nnetworks: {{{seat.network}: {{{network(seat)}}}}}\n")
            both_usable(seat, host.paths, tmp_path)
            first = wait_until(lambda: carrying(load, seat), 40)
            with losing(seat, host.paths, tmp_path, ""):
                wait_until(lambda: carrying(load, seat) not in ("", first), 40)
        finally:
            wait_until(lambda: not killed(where.netns), 20)
            sh(f"ip netns del {where.netns}")
            wait_until(lambda: seat.device not in sh("ip -o link"), 20)  # a namespace's devices go later than its name


def killed(netns: str) -> list[str]:
    """Processes there, which are ended: those that watch others start them again."""
    found = sh(f"ip netns pids {netns}").split()
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    return found
