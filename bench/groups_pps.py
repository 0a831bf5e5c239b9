"""Packets per second between guests in groups: 1,000 NICs in 100 groups of 10 rules, 10 NICs in one, and no groups.

    bench/groups_pps.py [--json] [--rounds N] [--packets N]

As bench/guard_pps.py: frames written to a guest's tap end in another guest's tap, the variants take turns within each
round, a ratio is the median of the rounds' ratios, rates are per second of the sender's processor time. "Judged":
a datagram that nobody answers is judged again each time, and the last of the ten rules lets it in. "Known": the
flow has been answered once. The back end is the one that this kernel has. Loading is the clock's time of
``nft -f`` for the whole table.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("src", "tests", ".")]

from lib.frames import UDP, ether, ip4, udp
from lib.guardlab import ATTACKER as GUEST
from lib.guardlab import BRIDGE, HOST, VICTIM, Lab, lab
from lib.netns import new_netns, sh

from bench.guard_pps import ratio, run
from kvmnet.drivers.nftables import members
from kvmnet.drivers.nftables.resources import NicGroups
from kvmnet.drivers.nftables.wire import change, element_lines, table_lines
from kvmnet.modes.segment import HostPolicy
from kvmnet.policy.flows import Policy, Rule, Rules
from kvmnet.policy.groups import Ports, Tracking, bridge_text, host_chains
from kvmnet.policy.guard import TABLE, guard_table, nic_guard
from kvmnet.policy.host import host_table

VARIANTS = (0, 10, 1000)
"""NICs in groups; 0: no groups at all."""
PORT = 9
CLAIMS = (("1,000 NICs in 100 groups against 10 in one", 1000, 10, 0.9),)
FRAME = ether(VICTIM.mac, GUEST.mac, 0x0800, ip4(GUEST.ip4, VICTIM.ip4, UDP, udp(GUEST.ip4, VICTIM.ip4, PORT, PORT, bytes(18))))
ANSWER = ether(GUEST.mac, VICTIM.mac, 0x0800, ip4(VICTIM.ip4, GUEST.ip4, UDP, udp(VICTIM.ip4, GUEST.ip4, PORT, PORT, bytes(18))))


def tracking() -> Tracking:
    probe = "add table bridge t; add chain bridge t c; add rule bridge t c ct state established accept"
    return Tracking.NETFILTER if "rror" in sh(f"unshare -n nft '{probe}' 2>&1", check=False) else Tracking.BRIDGE


def script(wired: Lab, nics: int, found: Tracking) -> str:
    """The guard with *nics* NICs in a tenth as many groups."""
    names = [f"g{i}" for i in range(max(1, nics // 10))] if nics > 10 else ["g0"] if nics else []
    rules = tuple(Rule(tcp=(str(1000 + i),), peers=(f"group:{names[-1]}",)) for i in range(9)) if names else ()
    policy = Policy({name: Rules((*rules, Rule(udp=(str(PORT),), peers=("group:g0",)))) for name in names})
    ports = Ports(frozenset({(BRIDGE, HOST.mac)}), {BRIDGE: 7})
    others = [nic_guard(f"kvt-n{i}", "full", [f"02:01:00:00:{i >> 8:02x}:{i & 255:02x}"], [f"10.8.{i >> 8}.{i & 255}"], bridge=BRIDGE)
              for i in range(max(nics, 10) - len(wired.guards))]
    guards = [*wired.guards, *others]
    _, added = change((), guards)
    placed = [NicGroups(name=g.name, table=TABLE, number=i + 1, groups=(names[0 if i < 2 else i % len(names)],), tenant="", zone=7,
                        macs=g.macs, addresses=tuple(a for a in g.addresses or () if not a.startswith("fe80")), isolated=False, traits=())
              for i, g in enumerate(guards)] if names else []
    policy_of_host = HostPolicy(bridged={BRIDGE}, routers={(BRIDGE, HOST.mac)}, hosted={BRIDGE})
    lines = ["flush ruleset", *table_lines(guard_table(groups=bridge_text(policy, found, ports, ()) if names else "")),
             *element_lines("add", added), *members.lines("add", (p for nic in placed for p in members.elements(nic))),
             *table_lines(host_table(policy_of_host, host_chains(found, ports) if names else ""))]
    return "\n".join(lines) + "\n"


def measure(rounds: int, packets: int, folder: Path) -> tuple[dict[str, dict[int, list[float]]], dict[int, list[float]]]:
    """Path -> NICs -> rates; NICs -> seconds of loading."""
    taken: dict[str, dict[int, list[float]]] = {name: {v: [] for v in VARIANTS} for name in ("judged", "known")}
    loading: dict[int, list[float]] = {v: [] for v in VARIANTS}
    found = tracking()
    with new_netns(), lab() as wired:
        scripts = {v: folder / f"{v}.nft" for v in VARIANTS}
        for variant, file in scripts.items():
            file.write_text(script(wired, variant, found))
        for turn in range(rounds):
            for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
                filtered = int(bool(variant) and found is Tracking.NETFILTER)
                sh(f"ip link set {BRIDGE} type bridge nf_call_iptables {filtered} nf_call_ip6tables {filtered}")
                began = time.monotonic()
                sh(f"nft -f {scripts[variant]}; conntrack -F 2>/dev/null || true")
                loading[variant].append(time.monotonic() - began)
                for name in taken:
                    if name == "known":
                        wired.victim.send(ANSWER)
                    run(wired.attacker.fd, FRAME, packets // 10)
                    wired.forget()
                    taken[name][variant].append(run(wired.attacker.fd, FRAME, packets))
                    if not wired.victim.drain():
                        raise SystemExit(f"{name} with {variant} NICs: nothing arrived")
    return taken, loading


def medians(of: Mapping[int, list[float]]) -> dict[int, float]:
    return {v: round(statistics.median(runs), 3) for v, runs in of.items()}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="result as JSON on standard output")
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--packets", type=int, default=20000, help="packets of one run")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        taken, loading = measure(asked.rounds, asked.packets, Path(folder))
    claims = [{"claim": claim, "traffic": name, "ratio": ratio(of, a, b), "at_least": least}
              for claim, a, b, least in CLAIMS for name, of in taken.items()]
    for name, of in taken.items():
        for variant, rate in medians(of).items():
            print(f"{name:9}  {f'{variant:,} NICs' if variant else 'no groups':12} {rate:12,.0f} packets/s", file=sys.stderr)
        print(f"{name:9}  groups (10 NICs) against none: {ratio(of, 10, 0):.2f}", file=sys.stderr)
    for variant, seconds in medians(loading).items():
        print(f"loading    {variant:,} NICs: {seconds:.3f} s", file=sys.stderr)
    for row in claims:
        print(f"{row['traffic']:9}  {row['claim']:44} {row['ratio']:.2f} (wanted {row['at_least']})", file=sys.stderr)
    if asked.json:
        print(json.dumps({"rates": {n: medians(of) for n, of in taken.items()}, "loading": medians(loading), "claims": claims}, indent=2))
    return int(any(float(str(row["ratio"])) < float(str(row["at_least"])) for row in claims))


if __name__ == "__main__":
    sys.exit(main())
