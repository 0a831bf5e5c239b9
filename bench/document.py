"""Documents with many guests, for measuring."""
from __future__ import annotations

PER_NETWORK = 1000
"""Guests of one network; a bridge takes 1,023 ports."""
RATES = ", rate: {in: 100mbit, out: 50mbit}"
LIMITS = (", limits: {send: {packets: 20k/s}, receive: {packets: 50k/s, syn: 1k/s}, storms: {broadcast: 100/s, multicast: 500/s}, "
          "neighbours: 50/s}")


def document(guests: int, nic: str = "") -> str:
    """A document of *guests* guests with a NIC each, on isolated networks of a /21 each with DHCP. ``nic``: further
    options of each NIC."""
    networks = max(1, guests // PER_NETWORK)
    lines = ["version: 1", "networks:"]
    lines += [f"  n{i}: {{mode: isolated, subnet: 10.{i}.0.0/21}}" for i in range(networks)]
    lines.append("vms:")
    lines += [f"  g{k}: {{nics: [{{network: n{k % networks}{nic}}}]}}" for k in range(guests)]
    return "\n".join(lines) + "\n"


EMPTY = "version: 1\n"
