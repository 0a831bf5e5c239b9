"""Steps -> lines of ``tc -batch``. Pure: what is printed for the operator is what runs."""
from __future__ import annotations

from typing import cast

from kvmnet.drivers.linux.words import Line
from kvmnet.drivers.tc.resources import (
    ALL,
    EGRESS,
    INGRESS,
    PREF,
    RECEIVERS,
    Detour,
    MacTable,
    Qdisc,
    Receiver,
    Sorter,
    TcClass,
    side_of,
)
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import merge

PLACE = ("protocol", "all", "pref", str(PREF))
EVERY = {INGRESS: ("handle", "800::800", "u32", "match", "u32", "0", "0"),
         EGRESS: ("handle", "1", "bpf", "bytecode", f"1,{ALL}")}
"""Every frame. u32 is what every kernel has that has any classifier, and matchall is younger. The two sides of a device share the
numbers of u32's tables (tc_u_common_ptr() in net/sched/cls_u32.c), so it can have a known one on one side only."""


def lines_of(step: Step) -> list[Line]:
    """The lines that make *step*. Raises TypeError for what is not of this driver."""
    match step:
        case Create(Qdisc() as qdisc):
            return [Line(("qdisc", "add", *place(qdisc), *settings(qdisc)), qdisc.key)]
        case Update(Qdisc() as before, Qdisc() as after):
            whole = cast(Qdisc, merge(before, after))
            return [Line(("qdisc", "change", *place(whole), *settings(whole)), after.key)]
        case Delete(Qdisc() as qdisc):
            return [Line(("qdisc", "del", *place(qdisc)), qdisc.key, gone=True)]
        case Create(TcClass() as made):
            return [class_line("add", made)]
        case Update(TcClass() as before, TcClass() as after):
            return [class_line("change", cast(TcClass, merge(before, after)))]
        case Delete(TcClass() as gone):
            dev, classid = gone.name.split(" ")
            return [Line(("class", "del", "dev", dev, "classid", classid), gone.key, gone=True)]
        case Create(Sorter()) | Update(_, Sorter()):
            sorter = cast(Sorter, merge(step.before, step.after) if isinstance(step, Update) else step.after)
            program = sorter.program or ""
            return [Line(("filter", "replace", *sorter_place(sorter), "handle", "1", "bpf", "bytecode", f"{program.count(',') + 1},{program}",
                          "classid", (sorter.into or "").partition(" ")[2]), sorter.key)]
        case Delete(Sorter() as sorter):
            return [Line(("filter", "del", *sorter_place(sorter)), sorter.key, gone=True)]
        case Create(MacTable() as table):
            where = ("filter", "add", *table_place(table.name, table.qdisc or ""))
            return [mac_table_gone(table), Line((*where, "handle", "1:", "u32", "divisor", "256"), table.key),
                    Line((*where, "handle", "800::800", "u32", "ht", "800::", "match", "u32", "0", "0", "hashkey", "mask", "0x000000ff", "at", "-12",
                          "link", "1:"), table.key)]
        case Delete(MacTable() as table):
            return [mac_table_gone(table)]
        case Create(Receiver()) | Update(_, Receiver()):
            known = cast(Receiver, merge(step.before, step.after) if isinstance(step, Update) else step.after)
            octets = known.name.partition(" ")[2].replace(":", "")
            return [Line(("filter", "replace", *receiver_place(known), "u32", "ht", f"1:{(known.node or '').partition(':')[0]}:",
                          "match", "u32", f"0x{octets[4:]}", "0xffffffff", "at", "-12", "match", "u16", f"0x{octets[:4]}", "0xffff", "at", "-14",
                          "classid", (known.into or "").partition(" ")[2]), known.key)]
        case Delete(Receiver() as known):
            return [Line(("filter", "del", *receiver_place(known), "u32"), known.key, gone=True)]
        case Create(Detour()) | Update(_, Detour()):
            detour = cast(Detour, merge(step.before, step.after) if isinstance(step, Update) else step.after)
            dev, side = detour.name.partition(" ")[0], side_of(detour)
            # Both verbs leave what others have there: clsact cannot be changed, and the filter has a number of its own.
            return [Line(("qdisc", "replace", "dev", dev, "clsact"), detour.key),
                    Line(("filter", "replace", "dev", dev, side, *PLACE, *EVERY[side],
                          *(("action", "skbedit", "priority", detour.into, "pipe") if detour.into else ()),
                          "action", "mirred", "egress", "redirect", "dev", detour.to or ""), detour.key)]
        case Delete(Detour() as detour):
            dev, side = detour.name.partition(" ")[0], side_of(detour)
            return [Line(("filter", "del", "dev", dev, side, *PLACE), detour.key, gone=True)]
    raise TypeError(f"not of this driver: {step}")


def mac_table_gone(table: MacTable) -> Line:
    return Line(("filter", "del", *table_place(table.name, table.qdisc or "")), table.key, gone=True)


def receiver_place(receiver: Receiver) -> tuple[str, ...]:
    dev, tree = receiver.name.partition(" ")[0], (receiver.into or "").partition(":")[0]
    return (*table_place(dev, f"{tree}:"), "handle", f"1:{receiver.node}")


def table_place(dev: str, qdisc: str) -> tuple[str, ...]:
    """``qdisc``: DEV HANDLE."""
    return ("dev", dev, "parent", qdisc.partition(" ")[2], "protocol", "all", "pref", str(RECEIVERS))


def sorter_place(sorter: Sorter) -> tuple[str, ...]:
    dev, pref = sorter.name.split(" ")
    return ("dev", dev, "parent", (sorter.qdisc or "").partition(" ")[2], "protocol", "all", "pref", pref)


def place(qdisc: Qdisc) -> tuple[str, ...]:
    dev, handle = qdisc.name.split(" ")
    where = ("root",) if qdisc.parent == "root" else ("parent", qdisc.parent or "")
    return ("dev", dev, *where, "handle", handle)


def settings(qdisc: Qdisc) -> tuple[str, ...]:
    match qdisc.discipline:
        case "tbf":
            return ("tbf", "rate", f"{qdisc.rate}kbit", "burst", f"{qdisc.burst}b", "limit", f"{qdisc.limit}b")
        case "bfifo":
            return ("bfifo", "limit", f"{qdisc.limit}b")
        case "htb":
            return ("htb", "default", f"{qdisc.default or 0:#x}")
        case "fq_codel":
            return ("fq_codel", "limit", str(qdisc.packets), *(("flows", str(qdisc.flows)) if qdisc.flows else ()))
    return (qdisc.discipline or "",)


def class_line(verb: str, made: TcClass) -> Line:
    dev, classid = made.name.split(" ")
    parent = made.parent.split(" ")[1] if made.parent else classid.partition(":")[0] + ":"
    return Line(("class", verb, "dev", dev, "parent", parent, "classid", classid, "htb",
                 "rate", f"{made.rate}kbit", "ceil", f"{made.ceil}kbit", "burst", f"{made.burst}b", "cburst", f"{made.cburst}b",
                 *(("prio", str(made.priority)) if made.priority is not None else ()),
                 *(("quantum", str(made.quantum)) if made.quantum else ())), made.key)
