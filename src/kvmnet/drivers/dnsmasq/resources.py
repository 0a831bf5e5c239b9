"""DHCP, router advertisements and DNS of one network, by one dnsmasq process. Pure."""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Resource, option
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class DnsmasqServer(Resource):
    """One dnsmasq process; named by its network."""

    kind: ClassVar[str] = "dnsmasq"
    dev: str | None = option(doc="link that it serves", ref="link", on_delete="delete")
    vrf: str | None = option(doc="routing domain that it serves in; '' for none", ref="link", on_delete="delete", recreate=True)
    config: tuple[str, ...] | None = option(doc="lines of its configuration file, in order", recreate=True)
    running: bool | None = option(doc="the process lives and has read its reservations")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Reservation(Resource):
    """Addresses and name of one NIC; named ``NETWORK MAC``. Changed by reload, never by restart."""

    kind: ClassVar[str] = "reservation"
    server: str | None = option(doc="the network's server", ref="dnsmasq", on_delete="cascade", recreate=True)
    hostname: str | None = option(doc="DNS and DHCP name; '' for none", guest="live")
    ip: str | None = option(doc="IPv4 address; '' for none", guest="live")
    ip6: str | None = option(doc="IPv6 address; '' for none", guest="live")
    tags: tuple[str, ...] | None = option(doc="DHCP option tags, sorted", guest="live")
