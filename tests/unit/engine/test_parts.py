"""Elements of a table are changed with it: nothing of another driver comes in between."""
from __future__ import annotations

from kvmnet.drivers.linux.resources import Address, Link, Sysctl
from kvmnet.drivers.nftables.resources import AddressSet, NftTable, NicGroups, NicLimits
from kvmnet.engine.plan import plan
from kvmnet.engine.resource import Key, Resource

TABLE = "bridge kvmnet"


def state(*resources: Resource) -> dict[Key, Resource]:
    return {r.key: r for r in resources}


def test_parts_stand_behind_their_whole_and_before_anything_else() -> None:
    one = state(NftTable(name=TABLE, text="a\n"), NicGroups(name="kvt-a-0", table=TABLE, groups=("old",)),
                AddressSet(name="office", table=TABLE, prefixes=("192.0.2.1",)))
    other = state(NftTable(name=TABLE, text="b\n"), NftTable(name="inet kvmnet", text="c\n"), Link(name="kvb-x", type="bridge"),
                  Address(name="kvb-x 10.0.0.1/24", dev="kvb-x"), Sysctl(name="net/ipv4/conf/kvb-x/forwarding", value="1", dev="kvb-x"),
                  NicGroups(name="kvt-a-0", table=TABLE, groups=("new",)), NicLimits(name="kvt-a-0", table=TABLE, packets=9),
                  AddressSet(name="office", table=TABLE, prefixes=("192.0.2.2",)))
    kinds = [s.key.kind for s in plan(one, other, frozenset(one))]
    start = kinds.index("nft-table")
    assert sorted(kinds[start + 1:start + 4]) == ["address-set", "nic-groups", "nic-limits"]
    assert kinds.index("link") < min(kinds.index("sysctl"), kinds.index("address"))
