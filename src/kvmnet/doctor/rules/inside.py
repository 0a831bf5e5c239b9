"""Rules about the inside of guests, as their agents tell it. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.doctor import inside
from kvmnet.doctor.finding import Finding
from kvmnet.doctor.inside import Judge
from kvmnet.doctor.view import View


def each(view: View, judge: Judge) -> Iterator[Finding]:
    for inner in view.inners:
        yield from judge(view, inner)


def guest_nic_down(view: View) -> Iterator[Finding]:
    """A card is switched off inside the guest, while its port on the host is up."""
    yield from each(view, inside.nic_down)


def guest_without_address(view: View) -> Iterator[Finding]:
    """A guest has no address on a card that the document gives one: no DHCP client, or its question or the answer is lost."""
    yield from (f for f in each(view, inside.without_address) if f.code == "guest-without-address")


def guest_other_address(view: View) -> Iterator[Finding]:
    """A guest has another address than the document gives it: a guard lets nothing pass that comes from it."""
    yield from (f for f in each(view, inside.without_address) if f.code == "guest-other-address")


def guest_other_prefix(view: View) -> Iterator[Finding]:
    """A guest has its address with another prefix length than the host has on that segment: it looks for some machines in the wrong place."""
    yield from each(view, inside.other_prefix)


def guest_subnet_overlap(view: View) -> Iterator[Finding]:
    """A guest has a second device (a bridge for containers or guests of its own) with addresses of its card's subnet: what is for its router goes there."""
    yield from each(view, inside.subnet_overlap)


def guest_without_route(view: View) -> Iterator[Finding]:
    """A guest has addresses and no default route, while its host would route for it: it reaches its own segment alone."""
    yield from inside.without_route(view)


def guest_wrong_neighbour(view: View) -> Iterator[Finding]:
    """A guest has another MAC for its router than the router has: its frames are lost, or somebody else gets them."""
    yield from (f for f in each(view, inside.gateway) if f.code == "guest-wrong-neighbour")


def guest_gateway_silent(view: View) -> Iterator[Finding]:
    """A guest asks for the MAC of its router and hears nothing: the address is wrong, or the question or the answer is lost."""
    yield from (f for f in each(view, inside.gateway) if f.code == "guest-gateway-silent")


def guest_duplicate_address(view: View) -> Iterator[Finding]:
    """A guest has given up an IPv6 address, because another machine answered for it (duplicate address detection)."""
    yield from each(view, inside.duplicate_address)


def guest_other_mac(view: View) -> Iterator[Finding]:
    """The MAC of a card was changed inside the guest: the guard, leases and filters know the one that the card has."""
    yield from inside.other_mac(view)


def guest_mtu(view: View) -> Iterator[Finding]:
    """A card has another MTU inside the guest than its port has on the host: large packets vanish, small ones pass."""
    yield from each(view, inside.mtu)


def guest_nested_mtu(view: View) -> Iterator[Finding]:
    """A guest forwards for containers or guests of its own behind a bridge with a larger MTU than its card: large transfers of theirs hang
    where ICMP is filtered."""
    yield from each(view, inside.nested_mtu)


def guest_without_resolver(view: View) -> Iterator[Finding]:
    """A guest knows no server for names, though one on its segment would answer: addresses work, names do not."""
    yield from each(view, inside.without_resolver)


def guest_queues_unused(view: View) -> Iterator[Finding]:
    """A guest uses fewer queues of its card than the card has and its processors could serve (ethtool -L, or a driver without mq)."""
    yield from each(view, inside.queues_unused)


def guest_offloads_off(view: View) -> Iterator[Finding]:
    """A guest has switched checksums or segmentation offload off, though its card offers them: throughput is a part of what it could be."""
    yield from each(view, inside.offloads_off)
