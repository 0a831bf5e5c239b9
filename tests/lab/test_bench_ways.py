"""Bonds as uplinks of a measuring host: the way that carries a load is lost, and the other takes over."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmnet.bench.matrix import PORT, Seat, configuration, uplink
from kvmnet.bench.traffic.program import program
from kvmnet.bench.twoways import ends, far_lines, losing
from kvmnet.host.paths import Paths
from lib.netns import named_netns, sh
from lib.world import world

pytestmark = pytest.mark.lab

FAR = "kvt-bench-far"


def test_a_load_over_a_bond_loses_its_way_and_gets_the_other(tmp_path: Path) -> None:
    """The load comes from the host itself: guests take their time here, and their way to the uplink is the same."""
    seats = [Seat(n, configuration(f"uplink={way}")) for n, way in enumerate(("active-backup", "802.3ad"))]
    load = program(Paths(tmp_path, tmp_path))
    with world() as host, named_netns(FAR):
        sh("\n".join(f"ip link add {a} type veth peer name {b} netns {FAR}; ip link set {a} up"
                     for seat in seats for a, b in zip(seat.members, ends(seat), strict=True)))
        (tmp_path / "far").write_text("\n".join(line for seat in seats for line in far_lines(seat)) + "\n")
        sh(f"ip -n {FAR} -batch {tmp_path}/far; ip netns exec {FAR} {load} serve port={PORT} life=300")
        host.apply("version: 1\nuplinks:\n" + "".join(f"  u{s.number}: {{{uplink(s)}}}\n" for s in seats) + "networks: {}\n")
        for seat in seats:
            whole = json.loads(sh(f"{load} steady ms=300 us=1000 to={seat.outside}"))
            with losing(seat, host.paths, tmp_path, FAR):
                cut = json.loads(sh(f"{load} steady ms=3000 us=1000 to={seat.outside}"))
            print(seat.ways, whole, cut)
            assert whole["over"] and whole["lost"] < cut["lost"], "without a loss nothing is lost that counts"
            assert cut["over"] and 0.001 < cut["gap"] < cut["seconds"] and cut["after"] > 0.1
