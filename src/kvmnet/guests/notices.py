"""What a plan does not change of guests that run, and what they notice without a step that says so."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvmnet.compile import Compiled
from kvmnet.drivers.nftables.resources import NicGuard
from kvmnet.drivers.qemu.folder import GuestFolder
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.plan import Create, Step, Update
from kvmnet.host.packets import has_carrier
from kvmnet.spec.guests import Run
from kvmnet.spec.models import Spec


def notices(spec: Spec, compiled: Compiled, steps: Sequence[Step], running: Sequence[GuestFolder]) -> list[str]:
    """Notes for the operator: guests that are not as the document says until they are started again,
    that it does not name any more, and that lose an address which they still use."""
    return [*not_started_so(spec, running), *pinned(steps, running), *cut_off(compiled, steps)]


def not_started_so(spec: Spec, running: Sequence[GuestFolder]) -> Iterator[str]:
    for home in running:
        vm = spec.vms.get(home.name)
        if vm is None or vm.run is None:
            yield (f"guest {home.name} runs, but the document does not have it run: it goes on without what was removed; "
                   f"kvmnet vm stop {home.name} ends it")
        elif differing := differences(home.started_with(), vm.run):
            yield (f"guest {home.name} runs with {differing}; that counts from its next start: "
                   f"kvmnet vm stop {home.name}, then kvmnet vm start {home.name}")


def differences(started: Mapping[str, Any], run: Run) -> str:
    """``memory 256M instead of 512M`` for everything that is not as it was at the start; '' when not known."""
    wanted = run.model_dump(mode="json")
    return ", ".join(f"{name} {words(name, started[name])} instead of {words(name, value)}"
                     for name, value in wanted.items() if name in started and started[name] != value)


def words(name: str, value: Any) -> str:
    return f"{value // 2**20}M" if name == "memory" and isinstance(value, int) else str(value or "none")


def pinned(steps: Sequence[Step], running: Sequence[GuestFolder]) -> Iterator[str]:
    """Cards that cannot be plugged in where the document wants them."""
    fixed = {home.name for home in running if home.started_with().get("machine") == "q35"}
    for step in steps:
        match step:
            case Create(GuestNic(vm=vm, pci=place)) if place and vm in fixed:
                yield (f"guest {step.key.name}: a card at PCI address {place} of a q35 guest can only be there from the "
                       f"start, so apply will fail; kvmnet vm stop {vm} first")


def cut_off(compiled: Compiled, steps: Sequence[Step]) -> Iterator[str]:
    """Guests whose card stays, and whose address goes."""
    names = {n.tap: f"{n.vm}/{n.nic}" for s in compiled.segments.values() for n in s.nics}
    anew = {step.after.tap for step in steps if isinstance(step, Create) and isinstance(step.after, GuestNic)}
    for step in steps:
        match step:
            case Update(before=NicGuard(addresses=before), after=NicGuard(addresses=after, level="full")):
                lost = [a for a in before or () if a not in (after or ()) and not a.startswith("fe80:")]
                tap = step.key.name
                if lost and tap in names and tap not in anew and has_carrier(tap):
                    yield (f"guest {names[tap]} is refused with {', '.join(lost)} at once, and uses it until it asks "
                           "DHCP again (after half its lease, or when its link is set down and up)")
