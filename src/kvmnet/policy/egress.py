"""The guard of ports that are no bridge's: macvtaps. Pure.

A macvtap's frames pass no hook of a bridge: the guest's transmit is the device's *egress*
(tap_get_user() in drivers/net/tap.c ends in dev_queue_xmit()). The judgement there is that of
``policy/guard.py``, word for word, but for the port's name, which is that of the device that the frame
leaves by. It stands in a table of its own, since sets belong to one table and one family.

What comes to a macvtap's guest comes in at the device: limits of it are counted there, by a hook of their own.

A chain of family netdev hangs on a device, so each port has a hook of its own, a resource beside its
guard: up to Linux 6.15 a device that is made anew has lost its chain without a word, from 6.16 on the
chain finds it again by its name. A hook that hangs on nothing is seen and made anew.

What no hook has judged is stopped behind it, by the port's gate: a classifier on the device itself, that
drops what does not bear the mark ``GUEST``. It goes with the device and with nothing else: neither
``nft flush ruleset`` nor the death of a process opens the port (nf_hook_egress() comes before
sch_handle_egress() in net/core/dev.c).
"""
from __future__ import annotations

import re
from collections.abc import Iterable

from kvmnet.drivers.macvtap.resources import PROGRAM, Gate, OpenPort
from kvmnet.drivers.nftables.resources import COMES_IN, GuardHook, NftTable
from kvmnet.policy.guard import JUDGE, SETS, with_budget
from kvmnet.policy.limits import RECEIPT
from kvmnet.policy.marking import every_mark, mark_chain
from kvmnet.policy.marks import GUEST

TABLE = "netdev kvmnet"
SIDES = re.compile(r"\b[io]ifname\b")
UNCOUNTED = f"chain {RECEIPT} {{\n    accept\n}}\n"
"""Where no NIC has limits of what comes to it. The chain is there always, as those of ``MARKS`` are."""
MARKS = "".join(mark_chain(name, "goto guest") + "\n" for name in every_mark())
"""Chains that mark packets on their way to the guard. All there can be: a hook leads to one, and table and hooks change one after
the other."""


def egress_table(zones: Iterable[int] = (), limits: str = "") -> NftTable:
    """The guard of every macvtap of this network namespace; the same text whatever NICs there are.

    ``zones``: networks on whose parent routers are listened to. ``limits``: as in ``guard_table``.
    """
    judge = SIDES.sub(lambda side: {"iifname": "oifname", "oifname": "iifname"}[side[0]], with_budget(SETS + JUDGE, limits))
    return NftTable(name=TABLE, text=judge + "".join(listening(zone) for zone in sorted(zones)) + MARKS
                    + ("" if f"chain {RECEIPT} {{" in limits else UNCOUNTED))


def listening(zone: int) -> str:
    """The chain that remembers routers outside: their link-locals are nobody's to claim. Frames of our own guests
    come by at the parent's ingress too, and have their mark by then."""
    rule = f"    meta mark & {GUEST:#x} == 0 icmpv6 type nd-router-advert"
    return "\n".join((f"chain {outside_chain(zone)} {{",
                      f"{rule} meta mark set {zone:#x} update @advertised {{ meta mark . @nh,64,128 }}",
                      f"    icmpv6 type nd-router-advert meta mark {zone:#x} meta mark set 0", "}", ""))


def outside_chain(zone: int) -> str:
    return f"outside_{zone:08x}"


def guest_port(device: str, to: str = "guest") -> tuple[Gate, GuardHook, OpenPort]:
    """What makes a macvtap a guarded port, in the order in which it is made: its gate, its hook, and that it is up.
    ``to``: the guard's first chain, or one that leads there."""
    return (Gate(name=device, dev=device, program=PROGRAM),
            GuardHook(name=device, table=TABLE, dev=device, guard=device, side="egress", to=to),
            OpenPort(name=device, gate=device, hook=device))


def counting_hook(device: str) -> GuardHook:
    """Where what comes to a macvtap is counted, from its parent or from another macvtap: macvlan_handle_frame() and macvlan_broadcast() in
    drivers/net/macvlan.c hand both to ingress of the device."""
    return GuardHook(name=device + COMES_IN, table=TABLE, dev=device, guard="", side="ingress", to=RECEIPT)


def parent_hook(device: str, zone: int) -> GuardHook:
    """The ear at a parent of macvtaps."""
    return GuardHook(name=device + COMES_IN, table=TABLE, dev=device, guard="", side="ingress", to=outside_chain(zone))
