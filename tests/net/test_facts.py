"""Probing leaves nothing behind, and says what the kernel really does."""
from __future__ import annotations

from typing import Any

import pytest

from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.facts.capture import capture
from kvmnet.facts.collect import facts_of, foreign_ruleset
from kvmnet.facts.features import DEVICES, PROBES, features
from kvmnet.facts.nft import by_parts
from kvmnet.host.paths import Paths
from lib.netns import sh

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]


def test_features_are_what_a_command_by_hand_shows_and_nothing_is_left(paths: Paths) -> None:
    before = sh("ip -d link; nft list ruleset")
    found = features(paths.run / "features.json")
    assert found.keys() == PROBES.keys() | DEVICES.keys()
    assert found["bridge"] == found["port"] == found["nft-bridge"] == ""
    sh("nft 'add table bridge x; add chain bridge x c { type filter hook prerouting priority 0; }'")
    by_hand = "yes" in sh("nft 'add rule bridge x c ct state established accept' && echo yes", check=False)
    assert (found["bridge-conntrack"] == "") == by_hand
    sh("nft delete table bridge x")
    assert sh("ip -d link; nft list ruleset") == before
    assert features(paths.run / "features.json") == found


def test_rules_of_tables_with_flags_are_whole(paths: Paths) -> None:
    """nft 1.0.6 prints flags from freed memory; whatever it makes of them, the rest is there, once."""
    sh("nft 'add table ip x { flags dormant; }; add chain ip x c { type filter hook input priority 0; policy drop; }; add rule ip x c tcp dport 22 accept; add set ip x s { type ipv4_addr; elements = { 192.0.2.1 }; };"
       "add table inet y; add chain inet y d; add rule inet y d counter drop'")

    def told(rows: list[dict[str, Any]]) -> list[str]:
        return sorted(f"{kind} {body.get('table', '')} {body.get('name', body.get('handle'))}" for row in rows for kind, body in row.items() if kind != "metainfo")
    whole, parts = capture(paths), by_parts(10)
    assert whole["missing"].keys().isdisjoint({"nft", "nft_text"})
    assert told(whole["nft"]) == told(parts) and len(parts) == 7
    assert [row["table"].get("flags") for row in whole["nft"] if "table" in row] == [["dormant"], None]


def test_facts_of_a_host_name_what_hangs_on_its_devices(paths: Paths) -> None:
    sh("ip link add eth9 type veth peer name far && ip link set eth9 up && ip addr add 192.0.2.5/24 dev eth9 &&"
       "ip addr add 192.0.2.6/24 dev eth9 valid_lft 100 preferred_lft 100 && ip rule add iif eth9 table 7 &&"
       "nft 'add table inet theirs; add chain inet theirs c; add rule inet theirs c iifname \"eth9\" drop' &&"
       "nft 'add table inet kvmnet; add chain inet kvmnet c; add rule inet kvmnet c iifname \"eth8\" drop'")
    seen = LinuxDriver().observe({})
    seen.update(NftablesDriver(paths).observe({}))
    facts = facts_of(seen, paths, uplinks=["eth9"], users=["root"])
    assert any(k.name == "net/ipv6/conf/eth9/accept_ra" for k in facts.state)
    assert any("iif eth9" in rule for rule in facts.rules)
    assert 'iifname "eth9"' in facts.ruleset and "eth8" not in facts.ruleset
    assert facts.cpus >= 1 and facts.users == {"root": 0} and facts.dhcp_clients == {}
    assert facts_of(seen, paths).ruleset == "" == foreign_ruleset(LinuxDriver().observe({}))
    assert "eth8" in sh("nft list ruleset")
    sh("ip rule del iif eth9 table 7; ip -6 rule add to 2001:db8::/64 table 7")
    assert facts_of(seen, paths, uplinks=["eth9"]).rules == ()
    sh("ip -6 rule add oif eth9 table 8")
    assert any("oif eth9" in rule for rule in facts_of(seen, paths, uplinks=["eth9"]).rules)
