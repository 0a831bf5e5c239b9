"""Steps -> lines of ``tc -batch``. Pure: what is printed for the operator is what runs."""
from __future__ import annotations

from typing import cast

from kvmnet.drivers.linux.words import Line
from kvmnet.drivers.tc.resources import ALL, EGRESS, INGRESS, PREF, Detour, Qdisc, Sorter, TcClass, side_of
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
