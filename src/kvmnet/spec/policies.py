"""Groups and tenants as the operator writes them: who may send what to whom. See docs/design/groups.md."""
from __future__ import annotations

from typing import Annotated, Literal

from kvmnet.spec.form import Field
from kvmnet.spec.part import Part
from kvmnet.spec.rates import TenantRate
from kvmnet.spec.types import IcmpTypes, Name, Peer, Peers, Ports, Protocols


class Traffic(Part):
    """Kinds of traffic; everything when none is given."""

    tcp: Ports | None = None
    """TCP ports, e.g. [80, 443, 8000-8099], or any."""
    udp: Ports | None = None
    """UDP ports, or any."""
    icmp: IcmpTypes | None = None
    """true for all of ICMP and ICMPv6, or names of types that mean the same in both, e.g. [echo-request]."""
    protocol: Protocols | None = None
    """Further IP protocols by name or number, e.g. [gre, 50]."""
    log: bool = False
    """Log what the rule lets in anew, at most 10 packets a second."""


class Ingress(Traffic):
    """What members may receive. Replies need no rule."""

    from_: Peers = ()
    """Senders: any, prefixes, group:NAME, set:NAME, tenant:NAME; anybody when not given."""


class Egress(Traffic):
    """What members may send. Replies need no rule."""

    to: Peers = ()
    """Receivers: any, prefixes, group:NAME, set:NAME; anybody when not given."""


class Crossing(Traffic):
    """What guests of other tenants may send to this one. Groups of the receiver are asked as well."""

    from_: Annotated[Peers, Field(min_length=1)]
    """Senders: tenant:NAME, group:NAME, or any guest."""
    to: Peer | None = None
    """group:NAME: only to NICs of the tenant that are in it, e.g. a service that all share."""


class NicGroup(Part):
    """A set of NICs with the same rules. A NIC that is in no group is not judged; one that is in several may do
    what any of them allows."""

    ingress: tuple[Ingress, ...] = ()
    """What may come to members anew; nothing else does."""
    egress: tuple[Egress, ...] | None = None
    """What members may send anew; anything when not given, nothing when empty."""
    refuse: Literal["drop", "reject"] = "drop"
    """What becomes of refused packets to and from members: dropped, or answered with a reset or an ICMP error."""
    log: bool = False
    """Log what is refused to and from members, at most 10 packets a second."""


class Quota(Part):
    """How much a tenant may have."""

    nics: Annotated[int, Field(ge=0)] | None = None
    """NICs of its guests, in all."""
    addresses: Annotated[int, Field(ge=0)] | None = None
    """IP addresses of its NICs, in all, each prefix of extra.addresses counted as one."""


class Tenant(Part):
    """Guests that reach each other, and that other tenants' guests reach only where it is allowed."""

    networks: tuple[Name, ...] = ()
    """Its networks. Guests of a network that has one tenant belong to it; where several share a network, each guest
    says whose it is."""
    quota: Quota = Quota()
    """Limits of what it has."""
    rate: TenantRate = TenantRate()
    """Limits of what its NICs send and receive together."""
    allow: tuple[Crossing, ...] = ()
    """What other tenants' guests may send to its own."""
    mirrored_to: tuple[Name, ...] = ()
    """Other tenants whose guests may get copies of its frames by mirrors. Guests without a tenant are the operator's, and may."""
