"""What is heard of a packet beside itself: the answer as it comes to the host, the question who has its next hop, and queues that kept it."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_interface

from kvmnet.check.second_look import FRAMES, is_answer
from kvmnet.doctor.asking import NOBODY
from kvmnet.doctor.ends import End, Place, candidates
from kvmnet.doctor.packet import ARP, ICMP6, Packet, made
from kvmnet.doctor.scene import Scene
from kvmnet.host.packets import Arriving
from kvmnet.host.run import run


def next_hop(scene: Scene, a: End, b: End) -> str:
    """Address whose MAC a guest asks for before it sends; '' where its own address is not sure to be its, since the question tells others what it is, and of another router than this host."""
    if a.place is not Place.NIC or not a.mac or all(row.get("lladdr", row.get("mac")) != a.mac for row in candidates(scene, a.ip, a.segment)):
        return ""
    face = scene.face(a.segment, a.dev)
    own = [ip_interface(i) for i in scene.addresses_of(face, ip_address(a.ip).version)] if face else []
    near = next((i for i in own if ip_address(a.ip) in i.network), None)
    if b.segment == a.segment and b.place is Place.NIC and (not near or ip_address(b.ip) in near.network):
        return b.ip
    if b.place is Place.HOST and near and ip_address(b.ip) in near.network:
        return b.ip
    return str(near.ip) if near else ""


class Arrivals:
    """Answers that come to the host itself: behind its firewall, unlike what a device shows. Raises HostCannot."""

    def __init__(self, number: int, address: str):
        self.number, self.address = number, address
        self.wire = Arriving(number, address)
        self.seen = False

    def came(self, mark: int) -> bool:
        """Whether an answer with the mark has come so far."""
        for _ in range(FRAMES):
            if self.seen or (told := self.wire.receive()) is None:
                break
            head = made((NOBODY, NOBODY), told[1], self.address, self.number).frame[:54 if ":" in self.address else 14]
            self.seen = is_answer(head + told[0], mark, self.number, self.address)
        return self.seen

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()


def queues(devices: Sequence[str]) -> dict[tuple[str, str], tuple[int, int]]:
    """(device, queue) -> packets that it has dropped, and that wait in it."""
    rows = json.loads(run(("tc", "-j", "-s", "qdisc", "show")) or "[]") if devices else []
    return {(row["dev"], f"{row['kind']} {row.get('handle', '')}".rstrip()): (int(row.get("drops", 0)), int(row.get("qlen", 0))) for row in rows if row.get("dev") in devices}


def grown(before: Mapping[tuple[str, str], tuple[int, int]], after: Mapping[tuple[str, str], tuple[int, int]]) -> list[str]:
    """Queues that dropped packets meanwhile, or hold some."""
    found = []
    for (dev, name), (drops, waiting) in after.items():
        more = drops - before.get((dev, name), (0, 0))[0]
        if more > 0 or waiting:
            found.append(f"the queue of {dev} ({name}) {f'dropped {more}' if more > 0 else ''}{' and ' if more > 0 and waiting else ''}{f'holds {waiting}' if waiting else ''} packet(s)")
    return found


def is_told(frame: bytes, address: str) -> bool:
    """Whether somebody says that he has an address (ARP, neighbour advertisement)."""
    packet = Packet(frame)
    at = packet.network
    if packet.protocol == ARP:
        return frame[at + 7:at + 8] == b"\2" and frame[at + 14:at + 18] == ip_address(address).packed
    if packet.version != 6 or packet.upper is None or packet.upper[0] != ICMP6 or packet.bits("th", 0, 8) != 136:
        return False
    return frame[packet.upper[1] + 8:packet.upper[1] + 24] == ip_address(address).packed
