"""What a profile would change on this host and in its document, each with why, source and risk. Pure.

A proposal is no promise: ``kvmnet tune --prove`` measures those of NICs, and keeps those that help beyond the noise.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvmnet.bench.matrix import switched_off, words_of
from kvmnet.records import asdict, dataclass, replace
from kvmnet.spec.guests import Model, Nic, Pin, Vm
from kvmnet.spec.knobs import KNOBS, REFUSED, Knob, Profile
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Mode

VIRTIO = (Model.VIRTIO, Model.VIRTIO_TRANSITIONAL)
MEASURED = "measured: kvmnet bench"
VIRTIO_SPEC = "virtio 1.3, 5.1"
QEMU = "QEMU, docs/system/devices/net.rst"


@dataclass(frozen=True, slots=True)
class Proposal:
    """One knob."""

    name: str
    """Its path in the document."""
    now: str
    proposed: str
    why: str
    source: str
    risk: str
    lacking: str = ""
    """Why this host cannot have it, '' when it can."""
    point: str = ""
    """What ``kvmnet bench`` varies to measure it, NAME=VALUE; '' when traffic of guests does not show it."""
    base: str = ""
    """What the NIC has now, in the same words."""

    @property
    def kernel(self) -> bool:
        """Whether it is a setting of the kernel, for the document's part tuning:."""
        return self.name.startswith("tuning.")

    @property
    def setting(self) -> str:
        """Its name there."""
        return self.name.removeprefix("tuning.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def settings(profile: Profile, values: Mapping[str, str | None], frozen: frozenset[str] = frozenset()) -> Iterator[Proposal]:
    """Kernel settings that *profile* would have otherwise. *values*: name -> what this host has, None where the kernel has no
    such setting. *frozen*: settings that cannot be written here."""
    for name, knob in KNOBS.items():
        value = knob.proposed.get(profile)
        if value is None:
            continue
        now = values.get(name)
        if now is not None:
            value = at_least(knob, now, value)
            if not knob.better(now, value):
                continue
        lacking = "not in this kernel" if now is None else "cannot be written here" if name in frozen else ""
        point = f"{name}={value.replace(' ', '/')}" if knob.traffic else ""
        yield Proposal(f"tuning.{name}", now or "", value, knob.why, knob.source, knob.risk, lacking, point)


def at_least(knob: Knob, now: str, value: str) -> str:
    """*value*, with nothing lowered that is only raised."""
    if not knob.raise_only or knob.wrong(now):
        return value
    return " ".join(str(max(int(a), int(b))) for a, b in zip(now.split(), value.split(), strict=True))


def left_alone(values: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    """Settings that are often named for this, and why none of them is proposed."""
    for name, why in REFUSED.items():
        yield name, why if values.get(name) is not None else f"{why} (not in this kernel)"


def nics(profile: Profile, spec: Spec, vhost: bool) -> Iterator[Proposal]:
    """Options of guests' NICs that *profile* would have otherwise. Guards and groups are never among them. *vhost*: whether
    the host has it."""
    for name, vm in spec.vms.items():
        for number, nic in enumerate(vm.nics):
            if nic.network in spec.networks and spec.networks[nic.network].mode is not Mode.SRIOV:
                for found in of_nic(profile, f"vms.{name}.nics[{number}]", vm, nic, words_of(vm, nic, spec), vhost):
                    lacking = "no vhost-net here: modprobe vhost_net" if found.point == "vhost=on" and not vhost else ""
                    yield replace(found, lacking=lacking)


def of_nic(profile: Profile, path: str, vm: Vm, nic: Nic, base: str, vhost: bool) -> Iterator[Proposal]:
    def proposal(option: str, now: str, value: str, why: str, source: str, risk: str, point: str | None = None) -> Proposal:
        return Proposal(f"{path}.{option}", now, value, why, source, risk,
                        point=f"{option}={value}" if point is None else point, base=base)

    if nic.model not in VIRTIO:
        yield proposal("model", nic.model.value, "virtio", "an emulated card leaves the guest for each of its registers; virtio once for "
                       "many packets", MEASURED, "the guest needs a virtio driver (Linux has it, Windows by an installation)")
        return
    fast = profile in (Profile.THROUGHPUT, Profile.ROUTER)
    cpus = vm.run.cpus if vm.run else 1
    if fast and nic.queues == 1 and cpus > 1:
        yield proposal("queues", "1", "auto", f"one pair of queues for each of {cpus} vCPUs: several flows use several of them",
                       f"{VIRTIO_SPEC}.6.5.5", "one flow alone becomes no faster; more memory and interrupts",
                       f"queues={min(cpus, 8)}")
    if fast and not nic.rss and not vhost and nic.vhost != "on" and cpus > 1 and nic.queues != 1:
        yield proposal("rss", "false", "true", "the guest says which of its queues gets which flow", f"{VIRTIO_SPEC}.6.5.7", "QEMU hashes each packet, "
                       "which costs it time; Linux guests from 5.18 on", "rss=on")
    if nic.vhost == "off" and not nic.rss:
        yield proposal("vhost", "off", "auto", "the kernel carries the packets, without a way through QEMU", QEMU,
                       "its processor time is a kernel thread's, not QEMU's: limits of QEMU do not hold it", "vhost=on")
    if profile is not Profile.LATENCY and (off := switched_off(nic)):
        yield proposal("offloads", "without " + ", ".join(off), "QEMU's defaults", "segments of up to 64 KiB and checksums that are "
                       "never computed between guests and host", f"{VIRTIO_SPEC}.6", "captures show frames that no wire could carry",
                       "offloads=all")
    if fast and nic.rx_ring in (None, 256):
        yield proposal("rx_ring", "256", "1024", "a longer burst fits while the guest is not scheduled", QEMU,
                       "four times the memory of the ring, and packets that wait longer before they are lost")


def pins(profile: Profile, spec: Spec, cpus: int) -> Iterator[Proposal]:
    """CPUs of their own for the vCPUs of guests that kvmnet starts, for latency, where there are enough and one is left for the host."""
    runs = {name: vm for name, vm in spec.vms.items() if vm.run}
    wanted = sum(vm.run.cpus for vm in runs.values() if vm.run)
    if profile is not Profile.LATENCY or wanted >= cpus:
        return
    free = cpus - wanted
    for name, vm in runs.items():
        assert vm.run
        own = [str(n) for n in range(free, free + vm.run.cpus)]
        free += vm.run.cpus
        if vm.run.pin == Pin():
            yield Proposal(f"vms.{name}.run.pin.vcpus", "every CPU", f"[{', '.join(own)}]", "a vCPU that keeps its CPU and its cache wakes up sooner, and waits for no other guest",
                           "Linux, sched_setaffinity(2)", "one that is alone on a busy CPU waits where another CPU would be free; interrupts of the uplinks belong on "
                           "the others: steering.interrupts", point=f"pin={'/'.join(own)}", base=words_of(vm, vm.nics[0], spec))


def changed(base: str, point: str) -> str:
    """*base* with one option changed."""
    words = dict(w.split("=", 1) for w in base.split())
    name, _, value = point.partition("=")
    words[name] = value
    if (name, value) in (("model", "virtio"), ("offloads", "all")):
        del words[name]
    return " ".join(f"{k}={v}" for k, v in words.items())


def fragment(found: Mapping[str, str]) -> str:
    """The part ``tuning:`` of a document with settings by their names."""
    lines = [f"  {name}: {value}" for name, value in found.items()]
    return "\n".join(["tuning:", *lines]) + "\n" if lines else ""
