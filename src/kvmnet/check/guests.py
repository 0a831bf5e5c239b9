"""What running guests see themselves, asked through their agents: one script for each guest. Pure but
for ``prove_guests``.

A guest is taken as it is: what it has no tool for is skipped and said so, never passed.
"""
from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from kvmnet.check.echo import HEADERS
from kvmnet.check.model import Claim, Execute, Finding, Subject, Verdict, failed, passed, skipped
from kvmnet.check.promises import LEAST_MTU6, gateway, mtu_outside
from kvmnet.errors import KvmnetError
from kvmnet.modes import services
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.records import dataclass, field, replace
from kvmnet.spec.networks import CLOSED

TIMEOUT = 20.0
"""Seconds for a guest's agent and the script; emulated guests are slow."""
PATIENCE = 6
"""Seconds for all addresses of a guest; one that has just booted has no IPv6 address for some."""
MARK = "kvmnet-check"
SILENT = 75
"""Exit code of a question that made no sense, since not even a small echo was answered."""
TOOLS = ("ip", "ping", "nslookup", "getent")
HEAD = f"""\
PATH=$PATH:/sbin:/usr/sbin
has() {{ command -v "$1" > /dev/null 2>&1; }}
nic() {{ for l in /sys/class/net/*; do [ "$(cat "$l/address")" = "$1" ] && echo "${{l##*/}}" && return; done; }}
q() {{ n=$1; shift; ( out=$(eval "$*" 2>&1); c=$?; echo "{MARK} answer $n $c" $out ) & }}
for t in {' '.join(TOOLS)}; do has $t && echo "{MARK} tool $t"; done
ping -h 2>&1 | grep -q -- '-M ' && echo "{MARK} tool ping-M"
"""
LISTING = f"""\
for l in /sys/class/net/*; do echo "{MARK} link ${{l##*/}} $(cat "$l/address") $(cat "$l/mtu")"; done
has ip && ip -o addr | while read -r n l f a rest; do echo "{MARK} addr $l $a"; done
"""


@dataclass(slots=True)
class Told:
    """What a guest said."""

    tools: set[str] = field(default_factory=set)
    links: dict[str, tuple[str, int]] = field(default_factory=dict)
    """MAC -> name and MTU in bytes."""
    addresses: dict[str, set[str]] = field(default_factory=dict)
    """Link -> addresses."""
    answers: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Number of a question -> exit code and output."""


@dataclass(frozen=True, slots=True)
class Question:
    """One claim about one NIC: what the guest runs (nothing, when what it says anyway is enough)."""

    network: str
    nic: str
    name: str
    judge: Callable[[Told, tuple[int, str] | None], Finding]
    command: str = ""
    tools: tuple[str, ...] = ()
    """One of these is needed."""
    awaited: str = ""
    """Address that the guest may still be asking for: it gets PATIENCE seconds."""


# -- questions -------------------------------------------------------------------------------------

def questions(subject: Subject, guest: str) -> list[Question]:
    """Everything to ask one guest, network by network."""
    asked: list[Question] = []
    for segment in subject.segments.values():
        for nic in segment.nics:
            if nic.vm == guest:
                asked += about(subject, segment, nic)
    return asked


def about(subject: Subject, segment: Segment, nic: NicOnNetwork) -> Iterator[Question]:
    def ask(name: str, judge: Callable[[Told, tuple[int, str] | None], Finding], command: str = "",
            *tools: str) -> Question:
        return Question(segment.name, f"{nic.vm}/{nic.nic}", name, judge, command, tools)

    for family, own in ((4, nic.ip), (6, nic.ip6)):
        if not own:
            continue
        yield replace(ask(f"address{family}", has_address(nic, own), "", "ip"), awaited=own)
        target = gateway(segment, family)
        if target and not subject.allowed.echo(nic.tap, own, target, beside=False):
            target = ""
        if target:
            yield ask(f"gateway{family}", answered(target), echo(nic, target), "ping")
        for address in outside(subject, segment, family):
            if not subject.allowed.echo(nic.tap, own, address, beside=False):
                continue
            yield ask(f"outside{family}", answered(address), echo(nic, address), "ping")
        for other in segment.nics:
            peer = other.ip if family == 4 else other.ip6
            if other.vm == nic.vm or other.vm not in subject.running or not peer:
                continue
            if (apart(segment, nic) and apart(segment, other)) or not subject.allowed.echo(nic.tap, own, peer, beside=True):
                yield ask(f"apart from {other.vm} by IPv{family}", silent(peer), echo(nic, peer, tries=1), "ping")
            else:
                yield ask(f"reaches {other.vm} by IPv{family}", answered(peer), echo(nic, peer), "ping")
        if target and (family == 4 or nic.mtu >= LEAST_MTU6):
            yield ask(f"mtu{family}", fits(nic, target), echo(nic, target, size=nic.mtu - HEADERS[family]), "ping")
            for address in outside(subject, segment, family):
                size = min(nic.mtu, mtu_outside(segment))
                if subject.is_next_hop(address, segment.vrf):
                    yield ask(f"mtu-outside{family}", carried(address, size), f"( {echo(nic, address)} ) > /dev/null || "
                              f"exit {SILENT}; {echo(nic, address, size=size - HEADERS[family])}", "ping")
    yield from name_question(subject, segment, nic, ask)


def name_question(subject: Subject, segment: Segment, nic: NicOnNetwork,
                  ask: Callable[..., Question]) -> Iterator[Question]:
    server = segment.address if nic.ip else segment.address6
    if not segment.network.dns.enabled or not server:
        return
    known = next((n for n in segment.nics if n.vm != nic.vm and n.ip), nic)
    if not known.ip:
        return
    full = f"{known.hostname}.{services.domain(segment)}"
    yield ask("dns", resolved(full, known.ip, server),
              f"nslookup {shlex.quote(full)} {server} || getent ahosts {shlex.quote(full)}", "nslookup", "getent")


def outside(subject: Subject, segment: Segment, family: int) -> list[str]:
    """The address to try beyond the uplink, if the network leads there."""
    if segment.network.mode in CLOSED or not gateway(segment, family):
        return []
    return [a for a in [subject.target(family, segment.vrf)] if a]


def apart(segment: Segment, nic: NicOnNetwork) -> bool:
    own = nic.declared.isolated
    return segment.apart if own is None else own


def echo(nic: NicOnNetwork, target: str, size: int = 0, tries: int = 2) -> str:
    """A shell command that succeeds when *target* answers; DF where this ping can ask for it."""
    family = "-6 " if ":" in target else ""
    plain = f"ping {family}-c 1 -W 2 -I \"$(nic {nic.mac})\" "
    if not size:
        return " || ".join([plain + target] * tries)
    return f"m=; ping -h 2>&1 | grep -q -- '-M ' && m='-M do'; {plain}$m -s {size} {target}"


# -- judging ---------------------------------------------------------------------------------------

def has_address(nic: NicOnNetwork, own: str) -> Callable[[Told, object], Finding]:
    def judge(told: Told, _: object) -> Finding:
        link = told.links.get(nic.mac)
        if link is None:
            return failed(f"the guest has no link with MAC {nic.mac}")
        found = told.addresses.get(link[0], set())
        if own in found:
            return passed(f"{own} on {link[0]}")
        return failed(f"{link[0]} has {', '.join(sorted(found)) or 'no address'} instead of {own}")
    return judge


def answered(target: str) -> Callable[[Told, tuple[int, str] | None], Finding]:
    def judge(_: Told, answer: tuple[int, str] | None) -> Finding:
        if answer is None:
            return failed(f"no word about {target} within the time")
        code, words = answer
        return passed(f"{target} answers echo{round_trip(words)}") if code == 0 else failed(f"{target}: {last(words)}")
    return judge


def silent(target: str) -> Callable[[Told, tuple[int, str] | None], Finding]:
    """Nothing is concluded from silence unless the same guest reaches another address."""
    def judge(told: Told, answer: tuple[int, str] | None) -> Finding:
        if answer is None:
            return failed(f"no word about {target} within the time")
        if answer[0] == 0:
            return failed(f"{target} answers echo, though the ports are isolated")
        if not any(code == 0 and "ping statistics" in words for code, words in told.answers.values()):
            return failed("cannot be proved: this guest reaches nobody")
        return passed(f"{target} does not answer, others do")
    return judge


def fits(nic: NicOnNetwork, target: str) -> Callable[[Told, tuple[int, str] | None], Finding]:
    def judge(told: Told, answer: tuple[int, str] | None) -> Finding:
        link, mtu = told.links.get(nic.mac, ("", 0))
        if mtu != nic.mtu:
            return failed(f"the MTU of {link or nic.mac} is {mtu or 'unknown'} instead of {nic.mtu}")
        if answer is None or answer[0] != 0:
            return failed(f"{nic.mtu} bytes to {target}: {last(answer[1]) if answer else 'no word'}")
        how = " with DF" if "ping-M" in told.tools else ""
        return passed(f"{nic.mtu} bytes{how} to {target} and back; {link} takes no larger ones")
    return judge


def carried(target: str, size: int) -> Callable[[Told, tuple[int, str] | None], Finding]:
    def judge(told: Told, answer: tuple[int, str] | None) -> Finding:
        if answer and answer[0] == SILENT:
            return skipped(f"{target} answers no echo of any size")
        if answer is None or answer[0] != 0:
            return failed(f"{size} bytes to {target}: {last(answer[1]) if answer else 'no word'}")
        how = " with DF" if "ping-M" in told.tools else ""
        return passed(f"{size} bytes{how} to {target} and back")
    return judge


def resolved(name: str, address: str, server: str) -> Callable[[Told, tuple[int, str] | None], Finding]:
    def judge(_: Told, answer: tuple[int, str] | None) -> Finding:
        words = answer[1] if answer else ""
        if re.search(rf"(?<![\d.]){re.escape(address)}(?![\d.])", words):
            return passed(f"{name} is {address} by {server}")
        return failed(f"{name} is not {address}: {last(words)}")
    return judge


def round_trip(words: str) -> str:
    found = re.search(r"time=([\d.]+) ms", words)
    return f" in {found[1]} ms" if found else ""


def last(words: str) -> str:
    """What a program said, in short."""
    if "packet loss" in words:
        return "no answer"
    return words[-120:] or "no answer"


# -- asking ----------------------------------------------------------------------------------------

def script_of(asked: Sequence[Question]) -> str:
    lines = [f"q {i} {shlex.quote(q.command)}" for i, q in enumerate(asked) if q.command]
    return HEAD + awaiting([q.awaited for q in asked if q.awaited]) + LISTING + "\n".join((*lines, "wait", ""))


def awaiting(addresses: Sequence[str]) -> str:
    """Wait until the guest has its addresses, for PATIENCE seconds at most in all."""
    here = " && ".join(f"echo \"$all\" | grep -q ' {address}/'" for address in addresses)
    return (f"i=0; while has ip && [ $i -lt {PATIENCE} ] && all=$(ip -o addr) && ! {{ {here}; }}; "
            "do i=$((i + 1)); sleep 1; done\n") if here else ""


def read_told(output: str) -> Told:
    """What the script printed. Lines of others are left out."""
    told = Told()
    for line in output.splitlines():
        match line.split():
            case [mark, "tool", name] if mark == MARK:
                told.tools.add(name)
            case [mark, "link", name, mac, mtu] if mark == MARK and mtu.isdigit():
                told.links[mac.lower()] = name, int(mtu)
            case [mark, "addr", link, address] if mark == MARK:
                told.addresses.setdefault(link, set()).add(address.partition("/")[0])
            case [mark, "answer", number, code, *words] if mark == MARK and (number + code).isdigit():
                told.answers[int(number)] = int(code), " ".join(words)
    return told


def judge_all(asked: Sequence[Question], told: Told, seconds: float) -> list[Claim]:
    claims = []
    for i, q in enumerate(asked):
        if q.tools and not told.tools.intersection(q.tools):
            found = skipped(f"the guest has no {' or '.join(q.tools)}")
        else:
            found = q.judge(told, told.answers.get(i))
        claims.append(Claim(q.network, q.nic, q.name, found.verdict, found.evidence, seconds))
    return claims


def prove_guests(subject: Subject) -> list[Claim]:
    """Claims of every guest that runs, all asked at the same time."""
    execute = subject.execute
    names = [g for g in subject.running if questions(subject, g)]
    if execute is None or not names:
        return []
    with ThreadPoolExecutor(len(names)) as pool:
        return [c for found in pool.map(lambda g: prove_guest(subject, g, execute), names) for c in found]


def prove_guest(subject: Subject, guest: str, execute: Execute) -> list[Claim]:
    asked, started = questions(subject, guest), time.monotonic()

    def unproved(why: str) -> list[Claim]:
        nics = dict.fromkeys((q.network, q.nic) for q in asked)
        return [Claim(network, nic, "agent", Verdict.SKIP, f"the guest cannot be asked: {why}",
                      time.monotonic() - started) for network, nic in nics]

    try:
        code, out, err = execute(guest, script_of(asked), subject.paths, TIMEOUT)
    except KvmnetError as error:
        return unproved(str(error))
    told = read_told(out)
    if not told.links:
        return unproved(last(err.strip()) if err.strip() else f"its shell ended with code {code}")
    return judge_all(asked, told, time.monotonic() - started)
