"""Which bond is meant, and what is asked beyond it: from the document in force, or from the host alone."""
from __future__ import annotations

from typing import TYPE_CHECKING

from kvmnet.bench.failover.bonds import read_bond
from kvmnet.bench.failover.losses import Loss
from kvmnet.bench.failover.paths import default_target
from kvmnet.bench.failover.scenario import Wish, measure, promise
from kvmnet.bench.model import Progress, Report
from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.facts.features import features
from kvmnet.host.interrupts import raised
from kvmnet.spec import ways
from kvmnet.spec.models import Spec

if TYPE_CHECKING:
    from kvmnet.api import Host


def chosen_bond(host: Host, name: str | None) -> str:
    """Device of the bond that *name* means: an uplink of the document, or a device. Without a name it is the
    document's only bond. Raises KvmnetError."""
    document = host.current()
    spec = document.spec if document else Spec(version=1)
    bonds = [n for n, u in spec.uplinks.items() if ways.is_bond(u)]
    if name is None:
        if len(bonds) == 1:
            return ways.device(bonds[0], spec)
        raise KvmnetError("name a bond: " + (f"the document has {', '.join(bonds)}" if bonds else "the document in force has none"),
                          "kvmnet bench failover NAME; ip link show type bond lists those of the host")
    return read_bond(ways.device(below(name, spec), spec) if name in spec.uplinks else name).name


def below(name: str, spec: Spec) -> str:
    """The uplink that carries a VLAN uplink in the end; any other uplink itself."""
    while (on := spec.uplinks[name].on) and on in spec.uplinks:
        name = on
    return name


def chosen_target(host: Host, bond: str) -> str:
    """An address beyond *bond* that should answer. Raises KvmnetError."""
    document = host.current()
    uplinks = document.spec.uplinks.values() if document else ()
    return default_target(bond, [g for u in uplinks for g in (u.gateway, u.gateway6) if g])


def promised(host: Host, wish: Wish) -> list[str]:
    """What will be done, in words. Raises what stands against it: HostCannot, ConflictError, KvmnetError."""
    if wish.loss is Loss.SILENT and (lacks := features(host.paths.run / "features.json")["nft-netdev-egress"]):
        raise HostCannot(f"a silent loss cannot be made: {lacks}", "--loss link needs nothing of the kernel")
    return promise(wish)


def run(host: Host, wish: Wish, progress: Progress) -> Report:
    """Measure under the writer's lock, so that nobody takes a lost member for drift.

    Raises ConflictError when another writer has it or a change waits for its confirmation, and what ``measure`` raises.
    """
    with raised(), host.engine.writing("kvmnet bench failover"):
        host.engine.make_way()
        return measure(wish, progress)
