"""Lines for ``ip -batch`` and its like, and what to do when the tool refuses one."""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from kvmnet.drivers.linux.words import Line
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.resource import Key
from kvmnet.host import run as host

SECONDS = 600.0
"""Deadline of one batch: 10,000 taps with 256 queues each take about two minutes."""

CURES = (
    ("Exchange full", "a bridge takes 1,023 ports (BR_MAX_PORTS): spread the guests over several networks"),
    ("Operation not permitted", "run as root (CAP_NET_ADMIN in this network namespace)"),
    ("Address already in use", "another link of the same parent has this MAC: give one of them another"),
    ("Network is unreachable", "the gateway is on no network of the host: add an address of its network first"),
    ("Nexthop has invalid gateway", "the gateway is on no network of the host: add an address of its network first"),
    ("mtu greater than device maximum", "the device's largest MTU is shown by: ip -d link (maxmtu)"),
    ("Cannot assign requested address", "the device does not take this hardware address while it is in use"),
    ("File exists", "something that kvmnet did not make is in its place: see ip address and ip route"),
    ("Unknown device type", "the kernel lacks this device type: modprobe it, or install the full kernel package"),
    ("Device or resource busy", "the device is held by something else (open by a process, or a port elsewhere)"),
    ("/dev/net/tun", "the kernel has no TUN/TAP: modprobe tun"),
    ("No such device", "the device that it belongs to is not there: ip link shows those that are"),
    ("has slaves", "take every member out of the bond first"),
    ("can not be enslaved", "only an Ethernet NIC that nothing else holds can be a member of a bond"),
    ("Numerical result out of range", "a VLAN's MTU is at most that of the device that carries it"),
    ("Cannot find device", "the device went away while kvmnet was working: run plan again"),
)
"""Part of the tool's message -> what to do."""
GONE = ("No such process", "Cannot find device", "Cannot find bridge device", "Cannot assign requested address", "No such device",
        "No such file or directory")
"""What ``ip`` says when a thing that is to be deleted does not exist any more."""


def batch_text(lines: Iterable[Line]) -> str:
    return "".join(f"{line}\n" for line in lines)


def run_batch(lines: Iterable[Line], tool: str = "ip", absent: Sequence[str] = GONE,
              cures: Sequence[tuple[str, str]] = CURES) -> None:
    """Run *lines*; what is to be deleted and is gone already is passed over. ``absent``, ``cures``: what the tool says then,
    and what to do about other words of it. Raises StepFailed."""
    source = iter(lines)
    first = next(source, None)
    if first is None:
        return
    made: list[Line] = []
    given = 0

    def fed() -> Iterator[str]:
        nonlocal given
        for line in chain((first,), source):
            made.append(line)
            text = batch_text((line,))
            if len(text.encode()) > host.LONGEST:
                return
            given += 1
            yield text

    argv = (tool, "-batch", "-")
    try:
        host.feed(argv, fed(), timeout=SECONDS)
        at = given
    except host.ToolFailed as failed:
        at = passed_over(failed, made, tool, absent, cures)
    rest = [*made[at:], *source]
    while rest:
        try:
            host.run(argv, stdin=batch_text(rest), timeout=SECONDS)
            return
        except host.ToolFailed as failed:
            rest = rest[passed_over(failed, rest, tool, absent, cures):]


def passed_over(failed: host.ToolFailed, lines: Sequence[Line], tool: str, absent: Sequence[str], cures: Sequence[tuple[str, str]]) -> int:
    """How many of *lines* are done with, the last because there was nothing to delete. Raises StepFailed when it is another one that failed."""
    where = re.search(r"Command failed -:(\d+)", failed.detail)
    detail = re.sub(r"\s*Command failed -:\d+\s*", "", failed.detail).strip()
    detail = detail.removeprefix("RTNETLINK answers: ").removeprefix("Error: ")
    if where is None:
        raise StepFailed(accused(detail, lines), detail, cure(detail, cures)) from failed
    number = int(where[1])
    line = lines[number - 1]
    if not (line.gone and any(text in detail for text in absent)):
        raise StepFailed(line.key, f"{detail} ({tool} {line})", cure(detail, cures)) from failed
    return number


def accused(detail: str, lines: Sequence[Line]) -> Key | None:
    """Whose line ``ip`` refused without saying its number: invarg() ends the program at once."""
    word = re.search(r'"([^"]+)"', detail)
    return next((line.key for line in lines if word and word[1] in line.words), None)


def cure(detail: str, cures: Sequence[tuple[str, str]] = CURES) -> str:
    return next((hint for text, hint in cures if text in detail), "")
