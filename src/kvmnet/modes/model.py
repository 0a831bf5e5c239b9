"""One guest NIC as the compiler places it on a network. Pure."""
from __future__ import annotations

from typing import TYPE_CHECKING

from kvmnet.records import dataclass

if TYPE_CHECKING:
    from kvmnet.spec.guests import Nic


@dataclass(frozen=True, slots=True, kw_only=True)
class NicOnNetwork:
    """A NIC with the addresses that it got."""

    vm: str
    nic: str
    tap: str
    """Its device on the host; '' for a VF."""
    mac: str
    ip: str
    """IPv4 address, or '' for none."""
    ip6: str
    """IPv6 address, or '' for none."""
    hostname: str
    mtu: int
    """MTU in bytes told to the guest."""
    declared: Nic
    """What the document says of it."""
    vf: str = ""
    """Name of the VF that it is, '' for a NIC with a tap."""
    standby: bool = False
    """It stands by for a VF of the same guest."""
    pair: str = ""
    """NIC that stands by for this VF (``db/nic0-standby``); '' for none."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Further source addresses and prefixes that the document allows."""
        return self.declared.extra.addresses
