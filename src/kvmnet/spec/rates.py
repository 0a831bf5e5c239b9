"""Rates as the operator writes them: how much a NIC may send and receive. See docs/design/rates.md.

Directions are the guest's: ``in`` is what it receives, ``out`` what it sends. A rate counts bytes of Ethernet frames,
headers included, without preamble and checksum: a TCP stream of full packets at 1500 bytes MTU gets 95.6 percent of it as
payload.
"""
from __future__ import annotations

from typing import Annotated, Literal

from kvmnet.spec.form import Field
from kvmnet.spec.part import Part
from kvmnet.spec.types import BitRate, Burst, Dscp, Dscps

Priority = Annotated[int, Field(ge=0, le=7)]


class Rate(Part):
    """How fast a NIC may be, seen from its guest. Frames beyond it wait, and are dropped when too many do."""

    in_: BitRate | None = None
    """Most that it receives, e.g. 2gbit, in bits of frames with their headers. Not in mode sriov."""
    out: BitRate | None = None
    """Most that it sends. mode sriov: whole Mbit/s, kept by the NIC's hardware."""
    burst: Burst | None = None
    """Bytes that may pass at once after a pause, in each direction, e.g. 256k. When not given: what passes in 2 ms,
    at least 128k (16k below 50mbit). Not in mode sriov."""
    min: BitRate | None = None
    """What it may send at least when others send too, by the network's way out; needs rate.out of the network. mode
    sriov: whole Mbit/s, kept by the NIC's hardware."""
    priority: Priority = 3
    """Who gets first what is left of the network's rate.out, 0 before 7; those of one priority share it."""
    min_in: BitRate | None = None
    """What it may receive at least when others receive too; needs rate.in of the network. Modes nat, routed, vxlan, and bridge with vlan."""
    priority_in: Priority = 3
    """Who gets first what is left of the network's rate.in, 0 before 7. In the same modes."""

    @property
    def limited(self) -> bool:
        """Whether anything is limited."""
        return bool(self.in_ or self.out)


class TenantRate(Part):
    """How much all NICs of a tenant may send and receive together, on all networks of this host, to and from anybody: each other,
    other guests, the host, outside. Counted as the rate of a NIC."""

    in_: BitRate | None = None
    """Most that they receive together. A NIC's own rate.in holds beside it."""
    out: BitRate | None = None
    """Most that they send together. A NIC's own rate.out holds beside it where the kernel has act_skbedit, and is refused elsewhere."""

    @property
    def limited(self) -> bool:
        return bool(self.in_ or self.out)


class NetworkRate(Part):
    """How much all guests of a network may send and receive together, seen from them, by its way out: to and from
    everybody but other guests of the network on this host. Modes nat, routed, vxlan and bridge; macvtap: what they send."""

    in_: BitRate | None = None
    """Most that they receive together. Not in mode macvtap, nor in mode bridge without vlan, where the host is on the same segment."""
    out: BitRate | None = None
    """Most that they send together."""
    share: Literal["fair", "none"] = "fair"
    """How they share rate.out, and rate.in. fair: equally among the NICs that send, or receive; none: first come, first served, but for
    NICs with a min. mode macvtap: always that."""


class Inward(Part):
    """What a class gets of what the guests of a network receive together."""

    min: BitRate | None = None
    """What it gets in any case of rate.in."""
    max: BitRate | None = None
    """Most that it gets; rate.in when not given."""
    priority: Priority = 3
    """Who gets first what is left of rate.in, 0 before 7."""


class TrafficClass(Part):
    """Packets with some DSCPs, of all NICs of a network, in what they send by its way out, and with ``in`` in what they receive by it."""

    dscp: Dscps
    """DSCPs of its packets, e.g. [10, 12], or names (ef, af11, cs3)."""
    min: BitRate | None = None
    """What it gets in any case of rate.out."""
    max: BitRate | None = None
    """Most that it gets; rate.out when not given."""
    priority: Priority = 3
    """Who gets first what is left of rate.out, 0 before 7."""
    pcp: Priority | None = None
    """Priority in the VLAN tag (802.1Q PCP) of its frames. Only in mode bridge with vlan: other frames carry no tag."""
    in_: Inward | None = None
    """What it gets of what the guests receive; when not given, packets that come in with its DSCPs are among those of their NIC."""

    @property
    def limited(self) -> bool:
        return bool(self.min or self.max)


class Mark(Part):
    """What its packets are marked with as they come from the guest, after the guard."""

    dscp: Dscp | None = None
    """DSCP of the IPv4 and IPv6 packets that it sends, 0 to 63 or a name (ef, af11, cs3); what the guest says when not
    given."""
    trust: bool = False
    """With dscp: packets to which the guest has given a DSCP keep it."""
    pcp: Priority | None = None
    """Priority in the VLAN tag (802.1Q PCP) of the frames that it sends and that are in no class of its network. Only in mode bridge
    with vlan."""
