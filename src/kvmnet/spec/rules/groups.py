"""Groups, address sets and tenants: names that are there, rules that can be enforced, quotas. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from itertools import pairwise

from kvmnet.errors import Problem
from kvmnet.spec import pools
from kvmnet.spec.bounds import MOST_GROUPS
from kvmnet.spec.nearest import meant
from kvmnet.spec.pools import Family, PlacedNic
from kvmnet.spec.rules.subject import Subject, wrong
from kvmnet.spec.tenancy import BLIND, owners, tenant_of

RECEIVERS = ("group", "set")
SENDERS = ("group", "set", "tenant")
CROSSERS = ("group", "tenant")


def names(subject: Subject) -> Iterator[Problem]:
    """Groups, sets, tenants and networks that rules and NICs name and the document does not have."""
    spec = subject.spec
    for item in subject.nics:
        for position, group in enumerate(item.nic.groups):
            if group not in spec.groups:
                yield wrong(f"{item.path}.groups[{position}]", f"there is no group {group}",
                            meant(group, tuple(spec.groups), "groups"))
    for name, vm in spec.vms.items():
        if vm.tenant and vm.tenant not in spec.tenants:
            yield wrong(f"vms.{name}.tenant", f"there is no tenant {vm.tenant}",
                        meant(vm.tenant, tuple(spec.tenants), "tenants"))
    for name, tenant in spec.tenants.items():
        for position, network in enumerate(tenant.networks):
            if network not in spec.networks:
                yield wrong(f"tenants.{name}.networks[{position}]", f"there is no network {network}",
                            meant(network, tuple(spec.networks), "networks"))


def peers(subject: Subject) -> Iterator[Problem]:
    """Ends of rules that are not there, or of a kind that the rule cannot ask."""
    spec = subject.spec
    for name, group in spec.groups.items():
        for position, entry in enumerate(group.ingress):
            yield from _ends(subject, f"groups.{name}.ingress[{position}].from", entry.from_, SENDERS, prefixes=True)
        for position, way_out in enumerate(group.egress or ()):
            yield from _ends(subject, f"groups.{name}.egress[{position}].to", way_out.to, RECEIVERS, prefixes=True)
    for name, tenant in spec.tenants.items():
        for position, crossing in enumerate(tenant.allow):
            path = f"tenants.{name}.allow[{position}]"
            yield from _ends(subject, f"{path}.from", crossing.from_, CROSSERS, prefixes=False)
            if crossing.to:
                yield from _ends(subject, f"{path}.to", (crossing.to,), ("group",), prefixes=False)
            if f"tenant:{name}" in crossing.from_:
                yield wrong(f"{path}.from", f"{name} is the tenant itself", "remove it; its guests reach each other anyway")


def _ends(subject: Subject, path: str, found: tuple[str, ...], kinds: tuple[str, ...], *, prefixes: bool) -> Iterator[Problem]:
    spec = subject.spec
    known = {"group": tuple(spec.groups), "set": tuple(spec.address_sets), "tenant": tuple(spec.tenants)}
    words = {"group": "group", "set": "address set", "tenant": "tenant"}
    for end in found:
        kind, _, name = end.partition(":")
        if (end == "any" and path.endswith(".from")) or (prefixes and kind not in known):
            continue
        if kind not in kinds:
            yield wrong(path, f"{end} cannot stand here", "write " + " or ".join(f"{k}:NAME" for k in kinds)
                        + (", a prefix, or any" if prefixes else ""))
        elif name not in known[kind]:
            yield wrong(path, f"there is no {words[kind]} {name}", meant(name, known[kind], f"{words[kind]}s"))


def enforceable(subject: Subject) -> Iterator[Problem]:
    """NICs in groups or of tenants whose frames the rules could not tell apart."""
    owner = owners(subject.spec)
    for item in subject.nics:
        nic = item.nic
        judged = "groups" if nic.groups else "a tenant" if tenant_of(
            subject.spec.vms[item.vm], nic.network, owner) else ""
        if not judged:
            continue
        network = subject.spec.networks.get(nic.network)
        if network and network.mode in BLIND:
            yield wrong(f"{item.path}.groups" if nic.groups else f"{item.path}.network", f"in mode {network.mode} {judged} cannot be "
                        "enforced: frames pass no bridge", "use mode: bridge")
            continue
        if nic.guard != "full":
            yield wrong(f"{item.path}.guard", f"with {judged} a NIC must be bound to its addresses: rules and flows know it "
                        "by them", "write guard: full, with what else it uses in extra")
        if nic.trunk and nic.groups:
            yield wrong(f"{item.path}.trunk", "groups do not see into VLANs, where only the MAC is bound",
                        "give the VLANs a NIC of their own, without groups")
        if len(set(nic.groups)) > MOST_GROUPS:
            yield wrong(f"{item.path}.groups", f"{len(set(nic.groups))} groups; a NIC can be in {MOST_GROUPS}",
                        "put rules that go together into one group")


def told_apart(subject: Subject) -> Iterator[Problem]:
    """NICs that share addresses and are judged differently, where the host routes to them: it knows a receiver by its address."""
    owner = owners(subject.spec)
    for name, here in subject.members.items():
        network = subject.spec.networks[name]
        if network.mode in BLIND or network.vlan or network.address == "none":
            continue
        claims = [(ip_network(text), f"{item.path}.{option}", item.path, (tenant_of(subject.spec.vms[item.vm], name, owner), {*item.nic.groups}))
                  for item in here for option, text in _used(item)]
        last = None
        for claim in sorted(claims, key=lambda c: (c[0].version, int(c[0].network_address), c[0].prefixlen)):
            if last is None or claim[0].version != last[0].version or claim[0].network_address not in last[0]:
                last = claim
            elif claim[3] != last[3]:
                yield wrong(claim[1], f"{claim[0].with_prefixlen.removesuffix(f'/{claim[0].max_prefixlen}')} is used by {last[2]} too, which "
                            "is in other groups or of another tenant: whose rules hold for what the host routes there cannot be told",
                            "put both into the same groups, or give each addresses of its own")


def _used(item: PlacedNic) -> Iterator[tuple[str, str]]:
    """(option, address or prefix) that the document gives to a NIC."""
    for option in ("ip", "ip6"):
        value = getattr(item.nic, option)
        if value and value != "none":
            yield option, value.partition("/")[0]
    yield from ((f"extra.addresses[{position}]", text) for position, text in enumerate(item.nic.extra.addresses))


def sets(subject: Subject) -> Iterator[Problem]:
    """Address sets without an address: a rule that asks one lets nothing pass."""
    for name, prefixes in subject.spec.address_sets.items():
        if not prefixes:
            yield wrong(f"address_sets.{name}", "the set is empty", "give it an address or prefix, or remove it with "
                        "the rules that ask it")


def tenants(subject: Subject) -> Iterator[Problem]:
    """Guests whose tenant is not clear, and guests of one tenant on a network of another."""
    spec = subject.spec
    owner = owners(spec)
    for item in subject.nics:
        here, vm = owner.get(item.nic.network, []), spec.vms[item.vm]
        path = f"{item.path}.network"
        if len(here) > 1 and not vm.tenant:
            yield wrong(path, f"{item.nic.network} is shared by the tenants {', '.join(here)}, and {item.vm} belongs to none",
                        f"write vms.{item.vm}.tenant: {here[0]}")
        elif vm.tenant in spec.tenants and here and vm.tenant not in here:
            yield wrong(path, f"{item.vm} belongs to {vm.tenant}, and {item.nic.network} is the network of {', '.join(here)}",
                        f"add {item.nic.network} to tenants.{vm.tenant}.networks to share it")
    found: dict[str, set[str]] = {}
    for item in subject.nics:
        if tenant := tenant_of(spec.vms[item.vm], item.nic.network, owner):
            found.setdefault(item.vm, set()).add(tenant)
    for name in spec.vms:
        for first, second in pairwise(sorted(found.get(name, ()))):
            yield wrong(f"vms.{name}", f"its NICs belong to two tenants, {first} and {second}: it would join them",
                        f"write tenant: {first} or remove a NIC")


def quotas(subject: Subject) -> Iterator[Problem]:
    """Tenants that have more than they may."""
    spec = subject.spec
    owner = owners(spec)
    for name, tenant in spec.tenants.items():
        own = [item for item in subject.nics if tenant_of(spec.vms[item.vm], item.nic.network, owner) == name]
        for option, count, most in (("nics", len(own), tenant.quota.nics),
                                    ("addresses", sum(_addresses(subject, item) for item in own), tenant.quota.addresses)):
            if most is not None and count > most:
                yield wrong(f"tenants.{name}.quota.{option}", f"{name} has {count} {option}, and may have {most}",
                            "raise the quota, or take guests away")


def _addresses(subject: Subject, item: PlacedNic) -> int:
    """Addresses that the NIC has or will be given."""
    network = subject.spec.networks.get(item.nic.network)
    given = 0
    if network is not None:
        for declared, family in ((item.nic.ip, Family.IPV4), (item.nic.ip6, Family.IPV6)):
            given += declared != "none" and bool(declared or pools.subnet_of(network, family))
    return given + len(item.nic.extra.addresses)


def tracked(subject: Subject) -> Iterator[Problem]:
    """What this host lacks to judge flows of bridged guests."""
    if not subject.links or subject.facts.features.get("bridge-conntrack") == "":
        return
    owner = owners(subject.spec)
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        if network is None or not (item.nic.groups or tenant_of(subject.spec.vms[item.vm], item.nic.network, owner)):
            continue
        path = f"{item.path}.groups" if item.nic.groups else f"{item.path}.network"
        if why := subject.facts.features.get("bridge-netfilter"):
            yield wrong(path, f"flows of bridged guests cannot be judged: {why}",
                        "modprobe br_netfilter, or a kernel with CONFIG_NF_CONNTRACK_BRIDGE (Linux 5.3)")
        elif network.bridge:
            yield wrong(path, f"groups and tenants on the bridge {network.bridge} need a setting of it (bridge netfilter) on this "
                        "kernel, and kvmnet does not change bridges of others",
                        "use a kernel with CONFIG_NF_CONNTRACK_BRIDGE (Linux 5.3), or a bridge of kvmnet's own")
        elif subject.sharing(item.nic.network):
            yield wrong(path, "groups and tenants on a VLAN-aware bridge need CONFIG_NF_CONNTRACK_BRIDGE",
                        "use a kernel with it (Linux 5.3)")


RULES = (names, peers, enforceable, told_apart, sets, tenants, quotas)
HOST_RULES = (tracked,)
