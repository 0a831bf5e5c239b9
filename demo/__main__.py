"""The main job, shown on a host of its own: a network namespace, so that this machine is untouched.

One document -> plan -> apply -> two real guests -> proof by packets -> an attacker refused -> an outside
hand repaired -> a change that nobody confirmed undone -> destroy leaves nothing.
Every command that is shown is the command that runs; the demo ends with exit code 1 when one does not
do what it should.
"""
from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from demo.world import KVMNET, Busy, standing
from kvmnet.host.clock import wait_until

HERE = Path(__file__).resolve().parent
NAME = "kvmnet-demo"
BOLD, DIM, GREEN, RED, OFF = (("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m")
                              if sys.stdout.isatty() or os.environ.get("FORCE_COLOR") else ("",) * 5)


class Wrong(Exception):
    """Something did not do what it should."""


def main() -> int:
    if os.geteuid():
        print("the demo makes network namespaces: run it as root, or with sudo", file=sys.stderr)
        return 1
    began = time.monotonic()
    try:
        with standing(NAME) as world:
            os.environ.update(world.environment())
            make_image()
            with contextlib.chdir(world.folder):
                story()
    except (Busy, Wrong) as wrong:
        print(f"\n{RED}The demo failed: {wrong}{OFF}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    print(f"\n{GREEN}{BOLD}All of it in {time.monotonic() - began:.0f} s.{OFF} "
          "Next: kvmnet init, then kvmnet plan, on a host of yours.")
    return 0


def story() -> None:
    document = Path("demo.yaml")
    shutil.copy(HERE / "demo.yaml", document)

    title("1", "The document")
    print(document.read_text())
    title("2", "The plan: nothing is changed yet")
    before = snapshot()
    kvmnet("plan", document, expect=2)
    title("3", "One transaction, then a second look at the host")
    kvmnet("apply", document, "--yes", quiet=True)
    title("4", "Two real guests")
    kvmnet("vm", "start", "web1", "web2")
    wait_for_guests("web1", "web2")
    kvmnet("status")
    title("5", "Proof by packets")
    kvmnet("check")
    title("6", "An attacker: web1 takes web2's address, then sends as the gateway")
    attack()
    title("7", "An outside hand: a rule deleted, a port pulled out of its bridge")
    drift(document)
    title("8", "A change that nobody confirms")
    unconfirmed(document, Path("changed.yaml"))
    title("9", "Destroy: nothing of ours stays, nothing of others' has changed")
    kvmnet("destroy", "--yes", quiet=True)
    after = snapshot()
    if after != before:
        raise Wrong(f"the host is not as it was:\n{before}\n--- now ---\n{after}")
    print("links, addresses, routes, rules and settings are exactly as before the demo")


def attack() -> None:
    """A guest that lies about its address reaches nobody, and the guard says so."""
    victim = output(guest("web2", "ip -4 -o addr show dev eth0")).split()[3]
    print(f"{DIM}web2 is {victim}; a ping from web1 under its own address:{OFF}")
    address = victim.partition("/")[0]
    honest = run(guest("web1", f"ping -c 2 -W 2 {address}"))
    lie = (f"ip addr add {victim} dev eth0; ip route flush cache; "
           f"ping -c 3 -W 1 -I {address} 192.168.100.1; code=$?; ip addr del {victim} dev eth0; exit $code")
    print(f"{DIM}the same guest, lying:{OFF}")
    spoofed = run(guest("web1", lie))
    if honest or not spoofed:
        raise Wrong("the honest ping must pass and the spoofed one must not")
    print(f"{GREEN}refused.{OFF} What the guard counted:")
    kvmnet("status", "--drops")


def drift(document: Path) -> None:
    for hand in ("ip link set kvt-web2-0 nomaster", "nft flush chain inet kvmnet srcnat"):
        shell(hand)
    kvmnet("plan", document, expect=2)
    kvmnet("apply", document, "--yes", quiet=True)
    kvmnet("plan", document)


def unconfirmed(document: Path, changed: Path) -> None:
    changed.write_text(document.read_text().replace(
        "networks:\n", "networks:\n  lab:\n    mode: isolated\n    subnet: 192.168.101.0/24\n", 1))
    kvmnet("apply", changed, "--yes", "--confirm", "4", quiet=True)
    print(f"{DIM}... nobody confirms (perhaps the change cut the operator off) ...{OFF}")
    try:
        wait_until(lambda: run(["plan", document], show=False) == 0, 30, 0.5)
    except TimeoutError as late:
        raise Wrong("the unconfirmed change was not undone") from late
    kvmnet("history")
    kvmnet("plan", document)


def wait_for_guests(*names: str) -> None:
    """Until every guest has its addresses."""
    print(f"{DIM}waiting for the guests to boot and get their addresses ...{OFF}")
    for name in names:
        for family in ("-4", "-6"):
            show = guest(name, f"ip {family} addr show dev eth0 scope global | grep -v tentative")
            try:
                wait_until(lambda show=show: "inet" in output(show, check=False), 120, 0.3)
            except TimeoutError as late:
                raise Wrong(f"guest {name} got no address") from late


# -- running things ---------------------------------------------------------------------------------

def title(number: str, text: str) -> None:
    print(f"\n{BOLD}━━ {number}  {text} {'━' * max(3, 88 - len(text))}{OFF}\n", flush=True)


def kvmnet(*words: object, expect: int = 0, quiet: bool = False) -> None:
    """Show and run one command; ``quiet`` hides its standard output (the plan seen before)."""
    code = run([str(w) for w in words], quiet=quiet)
    if code != expect:
        raise Wrong(f"kvmnet {' '.join(map(str, words))} ended with {code}, not {expect}")


def run(words: list[object] | list[str], *, show: bool = True, quiet: bool = False) -> int:
    shown = [str(w) if not isinstance(w, Path) else w.name for w in words]
    if show:
        print(f"{BOLD}$ kvmnet {' '.join(quote(w) for w in shown)}{OFF}", flush=True)
    hide = subprocess.DEVNULL if quiet or not show else None
    return subprocess.run(inside(words), stdout=hide, stderr=None if show else hide, check=False).returncode


def output(words: list[str], *, check: bool = True) -> str:
    done = subprocess.run(inside(words), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise Wrong(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def guest(name: str, script: str) -> list[str]:
    return ["vm", "exec", name, "--", "sh", "-c", script]


def inside(words: list[object] | list[str]) -> list[str]:
    return ["ip", "netns", "exec", NAME, str(KVMNET), *map(str, words)]


def quote(word: str) -> str:
    return f"'{word}'" if " " in word else word


def shell(command: str) -> None:
    print(f"{BOLD}# {command}{OFF}", flush=True)
    subprocess.run(["ip", "netns", "exec", NAME, "sh", "-c", command], check=True)


# -- the host ---------------------------------------------------------------------------------------

def make_image() -> None:
    if subprocess.run([str(KVMNET), "vm", "image"], check=False).returncode:
        raise Wrong("the test guest could not be made")


def snapshot() -> str:
    """The host as others see it: links, addresses, routes, rules and the settings that routing needs."""
    command = ("ip -br link; ip -br addr; ip route; ip -6 route | sed 's/ expires [^ ]*//'; nft list ruleset; "
               "sysctl net.ipv4.conf.eth0.forwarding net.ipv6.conf.all.forwarding")
    return subprocess.run(["ip", "netns", "exec", NAME, "sh", "-c", command], capture_output=True, text=True,
                          check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
