"""Rates as the operator writes them: how much a NIC may send and receive. See docs/design/rates.md.

Directions are the guest's: ``in`` is what it receives, ``out`` what it sends. A rate counts bytes of Ethernet frames,
headers included, without preamble and checksum: a TCP stream of full packets at 1500 bytes MTU gets 95.6 percent of it as
payload.
"""
from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kvmnet.spec.part import Part
from kvmnet.spec.values import BitRate, Burst


class Rate(Part):
    """How fast a NIC may be, seen from its guest. Frames beyond it wait, and are dropped when too many do."""

    in_: Annotated[BitRate | None, Field(alias="in")] = None
    """Most that it receives, e.g. 2gbit, in bits of frames with their headers. Not in mode sriov."""
    out: BitRate | None = None
    """Most that it sends. mode sriov: whole Mbit/s, kept by the NIC's hardware."""
    burst: Burst | None = None
    """Bytes that may pass at once after a pause, in each direction, e.g. 256k. When not given: what passes in 2 ms,
    at least 128k (16k below 50mbit). Not in mode sriov."""
    min: BitRate | None = None
    """What it may send at least when others send too. mode sriov: whole Mbit/s, kept by the NIC's hardware."""

    @property
    def limited(self) -> bool:
        """Whether anything is limited."""
        return bool(self.in_ or self.out)
