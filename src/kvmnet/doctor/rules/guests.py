"""Rules about running guests and the machine below them. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.view import Json, View, json_settings, netdev, options, settings

STEAL = 0.05
"""Share of the CPUs' time that the hypervisor below may take."""
CUT_OFF = 0.01
"""Share of periods in which a quota may cut a guest off."""
BUSY, ONE_SIDED = 2000, 0.9
"""Interrupts between the two looks from which on their spread is judged, and the share of one CPU that is too much."""
PASSIVE = ("", "vfio-pci", "pcieport", "pci-stub")
"""Drivers that leave a device to guests."""


def vhost_missing(view: View) -> Iterator[Finding]:
    """A virtio card on a tap without vhost: QEMU copies each packet itself, which costs about half of the throughput and more CPU."""
    found = [c for c in view.cards if c.backend == "tap" and c.model.startswith("virtio") and not c.vhost]
    for card in found[:20]:
        reason = view.lacks("vhost-net")
        yield Finding(code="vhost-missing", severity=Severity.NOTE, where=card.guest, what=f"{card.guest}: packets of {card.tap or 'its card'} are moved by QEMU, not by the kernel",
                      why="vhost-net saves a switch to QEMU for each batch of packets.", evidence=(f"-netdev tap without vhost=on (pid {card.pid})", *((reason,) if reason else ())),
                      fix=("modprobe vhost_net", "vhost=on") if reason else ("vhost=on in -netdev tap; kvmnet: vhost: true",))


def emulated_card(view: View) -> Iterator[Finding]:
    """A guest has an emulated card (e1000e, rtl8139, pcnet ...): every access to a register leaves the guest. Where it has virtio drivers, virtio
    is several times faster."""
    for card in view.cards:
        if not card.model.startswith(("virtio", "vmxnet3", "igb")):
            yield Finding(code="emulated-card", severity=Severity.NOTE, where=card.guest, what=f"{card.guest} has an emulated {card.model}", why="It is a card in software, whatever hardware the host has.",
                          evidence=(f"-device {card.model} (pid {card.pid})",), fix=("model: virtio (kvmnet), <model type='virtio'/> (libvirt); the guest needs virtio_net or NetKVM",))


def queues_idle(view: View) -> Iterator[Finding]:
    """A card has more pairs of queues than its guest has processors, or the tap has several and the card does not offer them (mq=off): the rest is
    never used."""
    for card in view.cards:
        cpus = view.vcpus.get(card.pid, 1)
        if card.queues > cpus:
            what, fix = f"{card.guest}: {card.queues} pairs of queues for {cpus} processors", f"queues={cpus}"
        elif card.queues > 1 and card.model.startswith("virtio") and card.options.get("mq", "off") != "on":
            what, fix = f"{card.guest}: {card.queues} pairs of queues at the tap, and the card offers one", f"mq=on,vectors={2 * card.queues + 2} at the device"
        else:
            continue
        yield Finding(code="queues-idle", severity=Severity.NOTE, where=card.guest, what=what, why="A guest uses at most one pair for each processor.",
                      evidence=(f"queues={card.queues}, -smp {cpus}, mq={card.options.get('mq', 'off')}",), fix=(fix,))


def user_backend(view: View) -> Iterator[Finding]:
    """A card is connected by user-mode networking (slirp): ping to the outside fails unless net.ipv4.ping_group_range lets QEMU send, and nobody
    reaches the guest. That is no outage."""
    for card in view.cards:
        if card.backend == "user":
            first, _, last = view.sysctl("net/ipv4/ping_group_range").partition("\t")
            silent = not (first.isdigit() and last.isdigit() and int(first) <= int(last))
            yield Finding(code="user-backend", severity=Severity.NOTE, where=card.guest, what=f"{card.guest} is connected by user-mode networking: {'no ping, ' if silent else ''}nothing from outside", why="QEMU makes its connections with sockets of its own.",
                          evidence=(f"-netdev user (pid {card.pid})", f"net.ipv4.ping_group_range = {view.sysctl('net/ipv4/ping_group_range')}"), fix=("-netdev tap; or sysctl -w net.ipv4.ping_group_range='0 2147483647' for ping",))


def not_accelerated(view: View) -> Iterator[Finding]:
    """A guest runs without KVM: its processor is emulated, ten to fifty times slower, and so is its network."""
    for guest in view.rows("guests"):
        given = options(list(guest["argv"]))
        words = " ".join([*given.get("accel", ()), *given.get("machine", ()), *given.get("M", ())])
        if "enable-kvm" not in given and "kvm" not in words and "accel=hvf" not in words and not str(guest["argv"][0]).endswith("kvm"):
            name = guest.get("name") or f"pid {guest['pid']}"
            yield Finding(code="not-accelerated", severity=Severity.NOTE, where=name, what=f"{name} runs without KVM", why="Every instruction of the guest is translated.",
                          evidence=(f"no -accel kvm (pid {guest['pid']})",), fix=("-accel kvm; ls -l /dev/kvm, and virtualisation in the firmware",))


def guest_stopped(view: View) -> Iterator[Finding]:
    """A guest's process is there and the guest does not run: paused, out of disk, its monitor does not answer, or its process was stopped by a signal."""
    for guest in view.rows("guests"):
        if guest.get("halted"):
            yield halted(guest)
            continue
        status = guest.get("status", "running")
        if status not in ("running", "", "inmigrate", "prelaunch"):
            yield Finding(code="guest-stopped", severity=Severity.BLOCKS, where=guest["name"], what=f"{guest['name']}: {status}", why="A guest that does not run answers nothing, while its link is up.",
                          evidence=(f"query-status: {status} (pid {guest['pid']})",), fix=(f"kvmnet vm console {guest['name']}",))


def halted(guest: Json) -> Finding:
    """A guest whose QEMU was stopped as a process: SIGSTOP, a debugger, Ctrl-Z on its terminal."""
    name, pid = guest.get("name") or f"pid {guest['pid']}", guest["pid"]
    return Finding(code="guest-stopped", severity=Severity.BLOCKS, where=name, what=f"{name}: its QEMU, pid {pid}, was stopped by a signal", why="A guest that does not run answers nothing, while its tap has a carrier.",
                   evidence=(f"/proc/{pid}/stat: state T (stopped)",), fix=(f"kill -CONT {pid}",))


def card_missing(view: View) -> Iterator[Finding]:
    """QEMU has a tap open that no card of its guest is connected to: a -netdev that no -device names, mostly by a typing error in the id. Frames for the guest end there."""
    for guest in view.rows("guests"):
        given = options(list(guest["argv"]))
        used = {s.get("netdev", "") for s in (json_settings(text) or settings(text, "driver") for text in given.get("device", ()))}
        used |= {s.get("netdev", "") for s in (settings(text, "type") for text in given.get("netdev", ()) if text.startswith("hubport"))}
        lost = [(s, next(tap for tap in taps if tap)) for s in map(netdev, given.get("netdev", ())) if s.get("id") not in used and not guest.get("nics") and (taps := tap_of(guest, s))]
        for backend, tap in lost:
            name = guest.get("name") or f"pid {guest['pid']}"
            yield Finding(code="card-missing", severity=Severity.DEGRADES, where=tap, what=f"{name} has {tap} open, and no card of the guest is connected to it", why="QEMU warns once at its start that the netdev has no peer; what is sent to the guest waits or is lost there.", certainty=Certainty.LIKELY,
                          evidence=(f"-netdev {backend.get('type', 'tap')},id={backend.get('id', '')} and no -device with netdev={backend.get('id', '')} (pid {guest['pid']})",),
                          fix=(f"-device virtio-net-pci,netdev={backend.get('id', '')},mac=...   # in the guest's command line, and start it again",))


def tap_of(guest: Json, backend: Mapping[str, str]) -> list[str]:
    """Taps of a backend of QEMU, by name or by descriptor."""
    held = guest.get("taps") or {}
    return [tap for tap in (backend.get("ifname", ""), *(held.get(fd, "") for fd in (backend.get("fds") or backend.get("fd") or "").split(":"))) if tap in held.values()]


def cpu_stolen(view: View) -> Iterator[Finding]:
    """The hypervisor below this host takes its processors away (steal): packets wait, and latency has spikes."""
    now, then = view.machine.get("stat") or {}, view.later.get("stat") or {}
    a, b = now.get("cpu"), then.get("cpu")
    if not a or not b:
        return
    spent = [y - x for x, y in zip(a, b, strict=False)]
    total = sum(spent)
    if total > 0 and len(spent) > 7 and spent[7] / total > STEAL:
        yield Finding(code="cpu-stolen", severity=Severity.DEGRADES, where="cpu", what=f"{100 * spent[7] / total:.0f} % of the processors' time is taken by the hypervisor below",
                      why="This host is a guest itself, and shares its processors.", evidence=(f"steal {spent[7]} of {total} ticks in {view.later['seconds']:.1f} s",), fix=("a machine with processors of its own",))


def cpu_quota(view: View) -> Iterator[Finding]:
    """A quota of the scheduler cuts a guest off for the rest of each period: latency has spikes of tens of milliseconds, whatever its network could do."""
    for folder, row in (view.machine.get("throttled") or {}).items():
        if row["periods"] and row["throttled"] / row["periods"] > CUT_OFF:
            yield Finding(code="cpu-quota", severity=Severity.DEGRADES, where=row["guest"], what=f"{row['guest']} was cut off by its quota in {100 * row['throttled'] / row['periods']:.0f} % of all periods",
                          why="When the quota of a period (100 ms) is used up, vCPUs and QEMU stand still until the next.", evidence=(f"{folder}/cpu.stat: nr_periods {row['periods']}, nr_throttled {row['throttled']}",),
                          fix=(f"echo max > {folder}/cpu.max", "use weights (cpu.weight) and pinned processors instead"))


def interrupts_on_one_cpu(view: View) -> Iterator[Finding]:
    """A NIC with several queues has nearly all of its interrupts on one processor, which is the limit of its throughput."""
    for name, irqs in (view.later.get("interrupts") or {}).items():
        before = (view.machine.get("interrupts") or {}).get(name, {})
        grown = {irq: [b - a for a, b in zip(before.get(irq, counts), counts, strict=False)] for irq, counts in irqs.items()}
        active = {irq: counts for irq, counts in grown.items() if sum(counts) > BUSY / 10}
        cpus = [sum(column) for column in zip(*active.values(), strict=False)]
        if len(active) > 1 and len(cpus) > 1 and sum(cpus) > BUSY and max(cpus) > ONE_SIDED * sum(cpus):
            busiest = cpus.index(max(cpus))
            yield Finding(code="interrupts-on-one-cpu", severity=Severity.DEGRADES, where=name, what=f"{100 * max(cpus) / sum(cpus):.0f} % of the interrupts of {name} go to CPU {busiest}",
                          why="Its queues cannot work at the same time.", evidence=tuple(f"irq {irq}: {' '.join(str(c) for c in counts)}" for irq, counts in list(active.items())[:8]),
                          fix=(*(f"echo {n % len(cpus)} > /proc/irq/{irq}/smp_affinity_list" for n, irq in enumerate(list(active)[:16])), "or run irqbalance"))


def iommu_missing(view: View) -> Iterator[Finding]:
    """A guest wants a PCI device and the host has no IOMMU, or no vfio-pci."""
    wanted = [(g.get("name") or f"pid {g['pid']}", text) for g in view.rows("guests") for text in options(list(g["argv"])).get("device", ()) if "vfio-pci" in text]
    for feature in ("iommu", "vfio"):
        if wanted and (reason := view.lacks(feature)):
            yield Finding(code="iommu-missing", severity=Severity.BLOCKS, where=wanted[0][0], what=f"{wanted[0][0]} is given a PCI device, and {reason}", why="Without an IOMMU the device could write to all of the host's memory.",
                          evidence=(f"-device {wanted[0][1]}", reason), fix=("intel_iommu=on iommu=pt on the kernel command line; VT-d or AMD-Vi in the firmware",))


def iommu_group_shared(view: View) -> Iterator[Finding]:
    """A device that is bound to vfio-pci shares its IOMMU group with one that a driver of the host has: no guest can take it."""
    for group, members in (view.machine.get("iommu_groups") or {}).items():
        given = [m["pci"] for m in members if m["driver"] == "vfio-pci"]
        others = [m for m in members if m["driver"] not in PASSIVE]
        if given and others:
            yield Finding(code="iommu-group-shared", severity=Severity.BLOCKS, where=given[0], what=f"{given[0]} shares IOMMU group {group} with {', '.join(m['pci'] for m in others)}, which the host uses",
                          why="Devices of one group can reach each other's memory; vfio gives out whole groups.", evidence=tuple(f"{m['pci']} {m['driver'] or 'no driver'}" for m in members),
                          fix=(*(f"driverctl set-override {m['pci']} vfio-pci" for m in others), "or another slot"), certainty=Certainty.PROVED)
