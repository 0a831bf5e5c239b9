"""The process that speaks RSTP or MSTP for one bridge: ``python -I -S daemon.py FOLDER``, with the standard library alone.

Two processes: one that speaks, and one that starts it again when it ends. The one that speaks begins with every port shut.

A port is shut in the kernel first and then in the gate, and opened the other way round, before anything is sent: a neighbour
opens its own port when it hears that we have shut what could close a loop.

With several trees (MSTP) that is so for the VLANs of each: the port is open in the kernel as soon as one of its trees is, and the
states of its VLANs are those of their trees.

When both are gone, states stay as they are, but for one thing: a neighbour that hears nobody opens its ports, and where we hold
two open ones a loop would come of it. So only one port of each tree (the root port, if there is one) is open for good; the others
have a time to live in the gate, which is renewed while we live.
"""
from __future__ import annotations

import errno
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kvmnet.drivers.stp.gate import OPEN_FOR, opening, table_text
from kvmnet.drivers.stp.netlink import BLOCKING, FORWARDING, LEARNING, Kernel, Look, Refused
from kvmnet.drivers.stp.settings import Wish
from kvmnet.drivers.stp.states import port_state, told, vlan_changes
from kvmnet.drivers.stp.wiring import Wiring, megabits
from kvmnet.host.watched import CONFIG, STATE, replace, watch
from kvmnet.stp.bpdu import decode, frame, payload_of
from kvmnet.stp.bridge import Bridge
from kvmnet.stp.node import Effect, Flush, Send, SetState, Tripped
from kvmnet.stp.vectors import State

LOOK_AGAIN = 5.0
"""Seconds after which ports are looked at again, though nothing was told of them."""
GLANCE = 0.1
"""Seconds between two looks at the carriers of ports, as a bond's miimon. The kernel tells of a lost one at once, or up to a second late when
any other link of the machine, a guest's tap too, has changed within the last (linkwatch_schedule_work() in net/core/link_watch.c);
what it says when asked is the truth, and since Linux 6.6 asking also makes it tell."""
AT_ONCE = 16
"""Messages of one port that are read before the others get their turn: who floods one must not silence us."""
GONE = (errno.ENETDOWN, errno.ENODEV, errno.EBUSY, errno.EINVAL, errno.ENOENT)
"""A port that has no carrier, or is none any more; a VLAN that it has lost; or somebody has the kernel
speak STP: the gate alone then holds."""


class Speaker:
    def __init__(self, folder: Path):
        self.folder = folder
        self.wish = Wish.read(json.loads((folder / CONFIG).read_text()))
        self.lanes = self.wish.lanes
        self.kernel = Kernel()
        self.core: Bridge | None = None
        self.wirings: dict[str, Wiring] = {}
        self.states: dict[str, dict[int, State]] = {}
        """Port -> tree -> what it is in, as far as we have told."""
        self.opened: dict[int, dict[str, float]] | None = None
        """What the gate lets pass by each tree, and for how long; None when that is not known."""
        self.renew_at = 0.0
        self.look_at = 0.0
        self.written = ""

    def run(self, ready: int) -> NoReturn:
        """``ready``: told when every port is in our hands."""
        (self.folder / STATE).unlink(missing_ok=True)    # of one before
        self.gate()
        self.survey()
        self.write()
        os.write(ready, b"+")
        os.close(ready)
        while True:
            self.wait()
            now = time.monotonic()
            self.kernel.drain()
            self.hear(now)
            self.survey()
            if self.core is not None:
                self.carry(self.core.tick(time.monotonic()))
            self.gate()
            self.write()

    def wait(self) -> None:
        """Until something comes in, is told or is due, or a port has lost its carrier."""
        due = [self.look_at, self.renew_at]
        if self.core is not None and (tick := self.core.deadline()) is not None:
            due.append(tick)
        until, sockets = min(due) + 0.001, [self.kernel.heard, *(w.socket for w in self.wirings.values())]
        while (left := until - time.monotonic()) > 0:
            if select.select(sockets, [], [], min(left, GLANCE))[0] or self.cut_off():
                return

    def cut_off(self) -> bool:
        """Whether a port has lost its carrier, told of or not."""
        up = [name for name, port in self.core.ports.items() if port.up] if self.core is not None else []
        return any(seen is None or not seen.running for seen in map(self.kernel.look, up))

    def hear(self, now: float) -> None:
        for name, wiring in list(self.wirings.items()):
            for _ in range(AT_ONCE):
                if (data := wiring.receive()) is None:
                    break
                payload = payload_of(data)
                said = decode(payload) if payload is not None else None
                if said is not None and self.core is not None and name in self.core.ports:
                    self.carry(self.core.receive(name, said, now))

    def survey(self) -> None:
        """The bridge and its ports as they are now."""
        self.look_at = time.monotonic() + LOOK_AGAIN
        bridge = self.kernel.look(self.wish.bridge)
        if bridge is None or (self.core is not None and self.core.config.mac != bridge.mac):
            for name in list(self.wirings):
                self.leave(name)
            self.core = None
        if bridge is None:
            return
        if self.core is None:
            self.core = Bridge(self.wish.of_bridge(bridge.mac), time.monotonic())
        for name in self.wish.names:
            seen = self.kernel.look(name)
            if seen is None or seen.master != bridge.number:
                self.leave(name)
            else:
                self.hold(self.core, name, seen, bridge)

    def hold(self, core: Bridge, name: str, seen: Look, bridge: Look) -> None:
        """A port of the bridge: with a carrier it takes part; the kernel has it in the state that we want."""
        if name in self.wirings and (self.wirings[name].index, self.wirings[name].mac) != (seen.number, seen.mac):
            self.leave(name)
        if name not in self.wirings:
            try:
                self.wirings[name] = Wiring(name, seen.number, seen.mac)
            except OSError as error:
                print(f"{name}: {error}", flush=True)
                return
            self.carry(core.add_port(self.wish.of_port(name, megabits(name)), time.monotonic()))
        running = seen.running and bridge.up
        if running != core.ports[name].up:
            change = core.port_up if running else core.port_down
            self.carry(change(name, time.monotonic()))
            self.gate()
        if running:
            self.keep(name, seen.state)

    def leave(self, name: str) -> None:
        """It is no port of the bridge any more."""
        if wiring := self.wirings.pop(name, None):
            wiring.close()
        self.states.pop(name, None)
        if self.core is not None and name in self.core.ports:
            self.carry(self.core.remove_port(name, time.monotonic()))

    def carry(self, effects: Iterable[Effect]) -> None:
        """Do what is to be done: shut, then open, then forget, then speak."""
        effects = list(effects)
        changed = {(e.port, e.tree): e.state for e in effects if isinstance(e, SetState)}
        for (name, tree), state in changed.items():
            self.states.setdefault(name, {})[tree] = state
        for name in dict.fromkeys(port for (port, _), state in changed.items() if state is State.DISCARDING):
            self.shut(name)
        if changed:
            self.gate()
        for name in dict.fromkeys(port for (port, _), state in changed.items() if state is not State.DISCARDING):
            self.tell(name)
        for name in {e.port for e in effects if isinstance(e, Flush)} & self.wirings.keys():
            with suppress(Refused):
                self.kernel.flush(self.wirings[name].index)
        for effect in effects:
            if isinstance(effect, Send) and (wiring := self.wirings.get(effect.port)):
                wiring.send(frame(wiring.mac, effect.bpdu))
            elif isinstance(effect, Tripped):
                print(f"{effect.port}: a BPDU came in where none may: shut", flush=True)

    def shut(self, name: str) -> None:
        """Have the kernel shut what of a port is to be shut; it opens nothing."""
        if wiring := self.wirings.get(name):
            trees = self.states[name]
            with while_there():
                self.put_vlans(wiring.index, trees, (BLOCKING,))
                if set(trees.values()) == {State.DISCARDING}:
                    self.kernel.set_state(wiring.index, port_state(trees))

    def tell(self, name: str) -> None:
        """Put a port and its VLANs into their states in the kernel."""
        if wiring := self.wirings.get(name):
            with while_there():
                self.put_vlans(wiring.index, self.states[name])
            with while_there():
                self.kernel.set_state(wiring.index, port_state(self.states[name]))

    def keep(self, name: str, seen: int) -> None:
        """Put a port, which is in the state *seen*, back into what we have told, and VLANs that have come: the kernel opens both."""
        wiring, trees = self.wirings[name], self.states[name]
        with while_there():
            if len(trees) > 1:
                self.put_vlans(wiring.index, trees)
            if seen != port_state(trees):
                self.kernel.set_state(wiring.index, port_state(trees))

    def put_vlans(self, index: int, trees: Mapping[int, State], states: Collection[int] = (BLOCKING, LEARNING, FORWARDING)) -> None:
        """Put the VLANs of a port into those of their *states*. Where the kernel knows of none the gate alone holds."""
        try:
            seen = self.kernel.vlans(index)
        except Refused as refused:
            if refused.number != errno.EOPNOTSUPP:
                raise
            return
        for span in vlan_changes(seen, self.lanes, trees):
            if span.state in states:
                self.kernel.set_vlans(index, span)

    def gate(self) -> None:
        """Have the gate let pass what is open. Ends the process when that cannot be told: the next one begins with all shut."""
        now = time.monotonic()
        wanted = {tree: self.passing(tree) for tree in self.lanes.trees}
        if wanted == self.opened and now < self.renew_at:
            return
        script = "".join(opening(self.wish.bridge, tree, ports, [n for n in self.wish.names if n not in ports])
                         for tree, ports in wanted.items())
        if not self.load(script, subprocess.DEVNULL):
            print(f"{time.strftime('%FT%T')} the gate is gone, and made anew", flush=True)
            if not self.load(table_text(self.wish.bridge, sorted(self.wish.names), self.lanes) + script, None):
                raise OSError(errno.EIO, "nft does not take the gate")
        renews = any(len(ports) > 1 for ports in wanted.values())
        self.opened, self.renew_at = wanted, now + (self.wish.hello if renews else LOOK_AGAIN)

    def passing(self, tree: int) -> dict[str, float]:
        """Ports that are open by a tree, each with the seconds for which it is; 0 for good."""
        names = [n for n in self.wirings if self.states.get(n, {}).get(tree, State.DISCARDING) is not State.DISCARDING]
        root = self.core.node.trees[tree].root_port if self.core else ""
        anchor = root if root in names else next(iter(names), "")
        return {name: 0.0 if name == anchor else float(OPEN_FOR * self.wish.hello) for name in names}

    def load(self, script: str, errors: int | None) -> bool:
        return subprocess.run(["nft", "-f", "-"], input=script.encode(), stderr=errors, timeout=60, check=False).returncode == 0

    def write(self) -> None:
        """Tell in a file how the trees are."""
        state = told(self.core, time.monotonic()) if self.core is not None else {"trees": {}, "ports": {}}
        text = json.dumps({k: v for k, v in state.items() if k != "since"})
        if text != self.written:
            self.written = text
            replace(self.folder / STATE, json.dumps(state))


@contextmanager
def while_there() -> Iterator[None]:
    """What the kernel refuses because a port is GONE is not done; the next survey sees."""
    try:
        yield
    except Refused as refused:
        if refused.number not in GONE:
            raise


def speak(folder: Path, ready: int) -> NoReturn:
    """The process that speaks."""
    Speaker(folder).run(ready)


if __name__ == "__main__":
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    sys.exit(watch(Path(sys.argv[1]), speak, "another process speaks for this bridge"))
