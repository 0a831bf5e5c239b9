"""Foreign firewalls, as nft lists them: which lose our traffic, and what is said."""
from __future__ import annotations

from dataclasses import replace

import pytest

from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.facts.firewalls import Finding, Packet, Service, admit, blockers, packets
from kvmnet.modes.segment import Segment
from kvmnet.spec.networks import Network

OUT = Packet(way="forward", version=4, iif="kvb-lan", oif="eth0", words="out")
BACK = Packet(way="forward", version=4, iif="eth0", oif="kvb-lan", state="established", words="back")
OUT6 = Packet(way="forward", version=6, iif="kvb-lan", oif="eth0", words="out6")
DHCP = Packet(way="input", version=4, iif="kvb-lan", proto="udp", port=67, words="DHCP")
DNS = Packet(way="input", version=4, iif="kvb-lan", proto="udp", port=53, words="DNS")
ALL = (OUT, BACK, OUT6, DHCP, DNS)

DOCKER = """\
	chain DOCKER-USER {%s
		counter return
	}

	chain DOCKER-FORWARD {
		ct state related,established counter accept
		iifname "docker0" accept
	}

	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		counter jump DOCKER-USER
		counter jump DOCKER-FORWARD
	}

	chain INPUT {
		type filter hook input priority filter; policy accept;
	}
"""
FIREWALLD = """\
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		iifname "lo" accept
		ct state invalid drop
		jump filter_INPUT_ZONES
		reject with icmpx admin-prohibited
	}

	chain filter_INPUT_ZONES {
		iifname "eth0" goto public
		iifname { "kvb-lab", "virbr0" } accept
		%s
		return
	}

	chain public {
		tcp dport { 22, 80-90 } accept
		udp dport 53 log prefix "hi" level info counter accept comment "x"
	}

	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state vmap { invalid : drop, established : accept, related : accept }
		iifname != "eth0" oifname "eth0" accept
		limit rate 5/minute burst 3 packets log prefix "no"
		meta l4proto tcp drop
		drop
	}
"""
UFW = """\
	chain INPUT {
		type filter hook input priority filter; policy drop;
		counter jump ufw-before-input
	}

	chain ufw-before-input {
		iifname "lo" counter accept
		ct state related,established counter accept
		meta l4proto udp udp sport 67 udp dport 68 counter accept
	}
"""


def found(name: str, text: str, wanted: tuple[Packet, ...] = ALL) -> dict[str, Finding]:
    return {f.chain: f for f in blockers([NftTable(name=name, text=text)], wanted)}


def test_dockers_policy_loses_what_guests_send() -> None:
    (finding,) = found("ip filter", DOCKER % "").values()
    assert (finding.table, finding.chain, finding.hook, finding.why) == ("ip filter", "FORWARD", "forward", "policy drop")
    assert finding.lost == ("out",), "answers pass by their state, IPv6 by another table"
    assert finding.cure == "iptables -I DOCKER-USER -i kvb-+ -j ACCEPT and iptables -I DOCKER-USER -o kvb-+ -j ACCEPT"
    for word in ("ip filter FORWARD", "policy drop", "drops out", finding.cure):
        assert word in str(finding)


def test_what_the_cure_adds_is_seen() -> None:
    assert found("ip filter", DOCKER % '\n\t\tiifname "kvb-*" counter accept') == {}
    assert found("ip filter", DOCKER % '\n\t\toifname "kvb-*" counter accept')["FORWARD"].lost == ("out",)
    assert found("ip filter", DOCKER % '\n\t\tiifname "kvb-other" counter accept')["FORWARD"].lost == ("out",)


def test_firewalld_rejects_what_no_zone_takes() -> None:
    (finding,) = found("inet firewalld", FIREWALLD % "").values()
    assert finding.chain == "filter_INPUT" and finding.lost == ("DHCP", "DNS")
    assert finding.why == "reject with icmpx admin-prohibited"
    assert "firewall-cmd --permanent --zone=trusted" in finding.cure
    assert found("inet firewalld", FIREWALLD % 'iifname "kvb-lan" goto public')["filter_INPUT"].lost == ("DHCP",)
    assert found("inet firewalld", FIREWALLD % 'iifname "kvb-lan" accept') == {}


def test_new_connections_from_outside_fall_to_the_last_rule() -> None:
    asked = Packet(way="forward", version=6, iif="eth0", oif="kvb-lan", words="in")
    finding = found("inet firewalld", FIREWALLD % "", (asked,))["filter_FORWARD"]
    assert finding.lost == ("in",) and finding.why == "drop"
    assert "--add-interface=kvb-NETWORK and firewall-cmd --reload" in finding.cure


def test_ufw_is_told_in_its_own_words() -> None:
    (finding,) = found("ip filter", UFW).values()
    assert finding.lost == ("DHCP", "DNS") and finding.cure == "ufw allow in on kvb-NETWORK"


@pytest.mark.parametrize("rules", [
    "policy accept;", "policy drop;\n\t\taccept", 'policy drop;\n\t\tiifname "kvb-*" accept',
    "policy drop;\n\t\tudp dport { 53, 67-68 } accept", "policy drop;\n\t\tmeta l4proto udp counter accept",
    'policy drop;\n\t\tiifname != "eth0" accept', "policy accept;\n\t\tct state invalid drop",
    "policy accept;\n\t\tip saddr 192.0.2.0/24 drop", "policy accept;\n\t\ttcp dport 25 reject"])
def test_chains_that_let_the_services_pass(rules: str) -> None:
    text = f"\tchain input {{\n\t\ttype filter hook input priority filter; {rules}\n\t}}\n"
    assert found("inet filter", text) == {}


@pytest.mark.parametrize("rules", [
    "policy drop;", "policy drop;\n\t\tip saddr 192.0.2.0/24 accept", "policy accept;\n\t\tdrop",
    'policy accept;\n\t\tiifname "kvb-*" counter packets 3 bytes 9 drop', "policy drop;\n\t\ttcp dport 53 accept",
    "policy accept;\n\t\tjump other\n\t}\n\n\tchain other {\n\t\tgoto last\n\t}\n\n\tchain last {\n\t\treject"])
def test_chains_that_do_not(rules: str) -> None:
    text = f"\tchain input {{\n\t\ttype filter hook input priority filter; {rules}\n\t}}\n"
    finding = found("inet filter", text)["input"]
    assert finding.lost == ("DHCP", "DNS")
    assert finding.cure == "nft insert rule inet filter input iifname '\"kvb-*\"' accept"


def test_a_chain_that_jumps_to_itself_ends() -> None:
    text = "\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t\tjump input\n\t}\n"
    assert found("inet filter", text)["input"].why == "policy drop"


def test_what_has_to_pass_for_each_mode() -> None:
    def of(mode: str, **more: object) -> set[str]:
        network = Network.model_validate({"mode": mode, "subnet": "10.0.0.0/24", **more})
        segment = Segment(name="lan", network=network, bridge="kvb-lan", mtu=1500, address="10.0.0.1", address6="",
                          way_out="eth0" if "uplink" in more else "", nics=())
        return {f"{p.way} {p.state} {p.iif} {p.port or p.oif}" for p in packets([segment])}

    services = {"input new kvb-lan 67", "input new kvb-lan 53"}
    assert of("isolated") == services
    assert of("isolated", dns={"enabled": False}) == {"input new kvb-lan 67"}
    assert of("nat", uplink="wan") == services | {"forward new kvb-lan eth0", "forward established eth0 kvb-lan"}
    assert of("routed", uplink="wan") == services | {"forward new kvb-lan eth0", "forward new eth0 kvb-lan"}


def test_bridge_netfilter_sends_frames_between_guests_through_forward() -> None:
    segment = Segment(name="lab", network=Network.model_validate({"mode": "isolated"}), bridge="kvb-lab", mtu=1500,
                      address="", address6="", way_out="", nics=())
    assert packets([segment]) == []
    (finding,) = blockers([NftTable(name="ip filter", text=DOCKER % "")], packets([segment], {4, 6}))
    assert finding.lost == ("what guests of lab send each other (bridge netfilter is on for all bridges)",)
    adopted = replace(segment, bridge="vmbr0")
    (finding,) = blockers([NftTable(name="ip filter", text=DOCKER % "")], packets([segment, adopted], {4}))
    assert finding.cure.count("-i vmbr0 ") == finding.cure.count("-i kvb-+ ") == 1
    assert blockers([NftTable(name="ip filter", text=DOCKER % '\n\t\tiifname "kvb-*" accept')], packets([segment], {4})) == []


@pytest.mark.parametrize(("table", "chain", "chains", "told"), [
    ("inet mine", "in", ("in",), "nft insert rule inet mine in iifname '\"br0\"' ip saddr 192.0.2.7 udp dport 67 accept"),
    ("ip filter", "INPUT", ("INPUT",), "iptables -I INPUT -i br0 -s 192.0.2.7 -p udp --dport 67 -j ACCEPT"),
    ("ip filter", "INPUT", ("INPUT", "ufw-user-input"), "ufw allow in on br0 proto udp from 192.0.2.7 to any port 67"),
    ("inet firewalld", "filter_INPUT", (), "--add-rich-rule='rule family=\"ipv4\" source address=\"192.0.2.7\" port port=\"67\" protocol=\"udp\" accept'"),
])
def test_one_service_is_let_in_and_nothing_else(table: str, chain: str, chains: tuple[str, ...], told: str) -> None:
    assert told in admit(table, chain, chains, "br0", Service("udp", 67, "192.0.2.7"))[0]
    assert "192" not in " ".join(admit(table, chain, chains, "br0", Service("udp", 67)))
