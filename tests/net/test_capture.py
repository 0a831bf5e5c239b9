"""``kvmnet facts`` of a host with something of everything."""
from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lib.netns import new_netns, sh
from lib.tap import Tap

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[dict[str, Any], str]]:
    with new_netns(), socket.socket() as listener:
        sh("ip link add br0 type bridge; ip addr add 10.66.0.1/24 dev br0; ip link set br0 up; ip tuntap add t1 mode tap; ip link set t1 master br0 up;"
           "ip neigh add 10.66.0.9 lladdr 02:00:00:00:00:09 dev br0; tc qdisc add dev t1 clsact; ip rule add fwmark 7 lookup 77; ip route add default dev br0 table 77")
        sh("tc filter add dev t1 ingress protocol ip prio 1 bpf da bytecode '1,6 0 0 4294967295'", check=False)
        sh("""nft 'add table inet f; add chain inet f c { type filter hook forward priority 0; }; add rule inet f c iifname "br0" drop comment "token=hunter2"'""")
        listener.bind(("10.66.0.1", 5353))
        listener.listen()
        with Tap("t1"):
            done = subprocess.run([sys.executable, "-m", "kvmnet.cli.main", "facts"], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout), done.stdout


def test_everything_is_there(told: tuple[dict[str, Any], str]) -> None:
    facts, _ = told
    assert facts["format"] == 1 and facts["missing"] == {}
    links = {link["ifname"]: link for link in facts["links"]}
    assert links["br0"]["addr_info"][0]["local"] == "10.66.0.1" and links["t1"]["linkinfo"]["info_slave_data"]["isolated"] is False
    assert any(r.get("table") == "77" and r["dst"] == "default" for r in facts["routes4"]) and any(r.get("fwmark") == "0x7" for r in facts["rules4"])
    assert [n["lladdr"] for n in facts["neighbours"] if n["dst"] == "10.66.0.9"] == ["02:00:00:00:00:09"]
    assert any(r.get("rule", {}).get("chain") == "c" for r in facts["nft"]) and "drop" in facts["nft_text"]
    assert facts["sysctls"]["net/ipv4/conf/br0/arp_ignore"] == "0" and "Ip:" in facts["counters"]["snmp"]
    assert "tx-checksum-ip-generic" in facts["offloads"]["br0"]
    assert [f["direction"] for f in facts["filters"]] == ["ingress", "egress"] and facts["filters"][0]["filters"]


def test_who_holds_what(told: tuple[dict[str, Any], str]) -> None:
    facts, _ = told
    assert facts["taps"]["t1"]["queues"] == 1 and facts["taps"]["t1"]["program"].startswith("python")
    assert [(s["port"], s["program"][:6]) for s in facts["listening"] if s["address"] == "10.66.0.1"] == [(5353, "python")]


def test_no_secret_is_told(told: tuple[dict[str, Any], str]) -> None:
    assert "hunter2" not in told[1]
