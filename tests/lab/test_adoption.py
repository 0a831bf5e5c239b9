"""A host that others have set up, taken over: every kind of bond, VLANs, a bridge that goes by VLANs."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.adopt.importing import import_host
from kvmnet.adopt.model import Outcome
from kvmnet.api import Host
from kvmnet.host.paths import Paths
from kvmnet.spec.load import loads
from lib.netns import sh
from lib.world import steady

pytestmark = pytest.mark.lab

BONDS = {
    "active-backup": "miimon 50 updelay 100 primary_reselect better num_grat_arp 3 fail_over_mac active",
    "802.3ad": "miimon 100 lacp_rate fast xmit_hash_policy layer2+3 ad_select bandwidth min_links 1",
    "balance-xor": "arp_interval 500 arp_ip_target 192.0.2.1,192.0.2.7 arp_validate none xmit_hash_policy layer3+4",
    "balance-rr": "miimon 100 resend_igmp 5", "broadcast": "", "balance-tlb": "miimon 200 xmit_hash_policy layer3+4",
    "balance-alb": "miimon 100 downdelay 300"}


LINKS = """
link set bond1 type bond primary m1b
link set bond2 mtu 9000
link add link bond1 name bond1.10 type vlan id 10
link add link bond1.10 name inner type vlan id 11
link add link bond2 name outer type vlan proto 802.1ad id 20
link set outer mtu 1400 up
link set bond1.10 up
addr add 192.0.2.2/24 dev bond1
addr add 2001:db8::2/64 dev bond1.10 nodad
addr add 10.0.0.2/24 dev outer
route add default via 192.0.2.1
route add 10.7.0.0/16 via 10.0.0.1 metric 50
route add 10.8.0.0/16 dev outer table 100
rule add from 10.0.0.2 lookup 100
link add vmbr0 type bridge vlan_filtering 1 forward_delay 0
link set bond4 master vmbr0
link set vmbr0 up
addr add 198.51.100.2/24 dev vmbr0
link add br100 type bridge forward_delay 0
link add link bond5 name bond5.100 type vlan id 100
link set bond5.100 up master br100
link set br100 up
"""


def existing() -> None:
    lines = []
    for i, (mode, options) in enumerate(BONDS.items(), 1):
        lines += [f"link add bond{i} type bond mode {mode} {options}", f"link set bond{i} up"]
        for side in "ab":
            lines += [f"link add m{i}{side} type veth peer name p{i}{side}", f"link set p{i}{side} up",
                      f"link set m{i}{side} master bond{i}"]
    batch = "\n".join(lines) + LINKS
    sh(f"ip -batch - <<'END'\n{batch}\nEND\nbridge vlan add dev bond4 vid 2-4094")
    steady()


def test_what_import_writes_of_bonds_vlans_and_bridges_changes_nothing(netns: None, paths: Paths) -> None:
    existing()
    host = Host(paths)
    found = import_host(host)
    assert found.changes == (), (found.changes, found.text)
    told = {e.path for e in found.elements}
    seen = {str(k) for k in host.engine.observe({}).state if k.kind in ("link", "address", "route", "nft-table")}
    assert seen <= told, seen - told
    lost = {e.path: e.value for e in found.of(Outcome.UNSUPPORTED) if not e.path.startswith("link p")}
    assert lost == {"link bond1 fail_over_mac": "active", "link bond4 resend_igmp": "5", "uplink bond5 options.miimon": ""}
    assert any(e.path == "vlans of bond4" and e.value == "1 (untagged) 2-4094" for e in found.elements)
    assert any(e.path == "ip rule" and "10.0.0.2" in e.value for e in found.elements)
    uplinks = loads(found.text).spec.uplinks
    assert {u.device: u.bond.value for u in uplinks.values() if u.bond} == {f"bond{i}": m for i, m in enumerate(BONDS, 1)}
    assert uplinks["bond3"].options.arp and uplinks["bond3"].options.arp.targets == ("192.0.2.1", "192.0.2.7")
    assert uplinks["bond1"].options.primary == "m1b" and uplinks["outer"].protocol == "802.1ad"
    assert uplinks["bond1"].addresses == ("192.0.2.2/24",) and uplinks["bond1"].gateway == "192.0.2.1"
    change_and_give_back(host, found.text, paths)


def change_and_give_back(host: Host, text: str, paths: Paths) -> None:
    """Applied with other settings, in place; destroy leaves what was there at first."""
    before = dict(host.engine.observe({}).state)
    file = Path(paths.state.parent, "host.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace("miimon: 50", "miimon: 100").replace("mtu: 1400", "mtu: 1300"))
    result = host.apply_file(file)
    assert sorted(f"{type(s).__name__} {s.key}" for s in result.steps) == ["Update link bond1", "Update link outer"]
    assert "miimon 100" in sh("ip -d link show bond1") and "mtu 1300" in sh("ip link show outer")
    assert "192.0.2.2/24" in sh("ip addr show bond1") and "alias" not in sh("ip link")
    host.apply(host.plan_destroy())
    assert dict(host.engine.observe({}).state) == before
