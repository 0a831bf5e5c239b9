"""The process that speaks RSTP or MSTP for one bridge: ``python -I -S daemon.py FOLDER``, with the standard library alone.

Two processes: one that speaks, and one that starts it again when it ends. The one that speaks begins with every port shut.

A port is shut in the kernel first and then in the gate, and opened the other way round, before anything is sent: a neighbour
opens its own port when it hears that we have shut what could close a loop.

When both are gone, states stay as they are, but for one thing: a neighbour that hears nobody opens its ports, and where we hold
two open ones a loop would come of it. So only one port (the root port, if there is one) is open for good; the others
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
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kvmnet.drivers.stp.gate import OPEN_FOR, opening, table_text
from kvmnet.drivers.stp.netlink import FORWARDING, LEARNING, LISTENING, Kernel, Look, Refused
from kvmnet.drivers.stp.settings import Wish, told
from kvmnet.drivers.stp.wiring import Wiring, megabits
from kvmnet.host.watched import CONFIG, STATE, replace, watch
from kvmnet.stp.bpdu import decode, frame, payload_of
from kvmnet.stp.bridge import Bridge
from kvmnet.stp.node import Effect, Flush, Send, SetState, Tripped
from kvmnet.stp.vectors import CIST, State

KERNEL_STATES = {State.DISCARDING: LISTENING, State.LEARNING: LEARNING, State.FORWARDING: FORWARDING}
LOOK_AGAIN = 5.0
"""Seconds after which ports are looked at again, though nothing was told of them."""
AT_ONCE = 16
"""Messages of one port that are read before the others get their turn: who floods one must not silence us."""
GONE = (errno.ENETDOWN, errno.ENODEV, errno.EBUSY, errno.EINVAL)
"""A port that has no carrier, or is none any more; or somebody has the kernel speak STP: the gate alone then holds."""


class Speaker:
    def __init__(self, folder: Path):
        self.folder = folder
        self.wish = Wish.read(json.loads((folder / CONFIG).read_text()))
        self.kernel = Kernel()
        self.core: Bridge | None = None
        self.wirings: dict[str, Wiring] = {}
        self.states: dict[str, State] = {}
        """What each port is in, as far as we have told."""
        self.opened: dict[str, float] | None = None
        """What the gate lets pass, and for how long; None when that is not known."""
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
        now = time.monotonic()
        due = [self.look_at, self.renew_at]
        if self.core is not None and (tick := self.core.deadline()) is not None:
            due.append(tick)
        select.select([self.kernel.heard, *(w.socket for w in self.wirings.values())], [], [], max(0.0, min(due) - now) + 0.001)

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
        for name, _, _ in self.wish.ports:
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
        if running and seen.state != KERNEL_STATES[self.states[name]]:
            self.tell(name, self.states[name])

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
        states = {e.port: e.state for e in effects if isinstance(e, SetState) and e.tree == CIST}
        for name, state in states.items():
            self.states[name] = state
            if state is State.DISCARDING:
                self.tell(name, state)
        if states:
            self.gate()
        for name, state in states.items():
            if state is not State.DISCARDING:
                self.tell(name, state)
        for name in {e.port for e in effects if isinstance(e, Flush)} & self.wirings.keys():
            with suppress(Refused):
                self.kernel.flush(self.wirings[name].index)
        for effect in effects:
            if isinstance(effect, Send) and (wiring := self.wirings.get(effect.port)):
                wiring.send(frame(wiring.mac, effect.bpdu))
            elif isinstance(effect, Tripped):
                print(f"{effect.port}: a BPDU came in where none may: shut", flush=True)

    def tell(self, name: str, state: State) -> None:
        """Put a port into a state in the kernel."""
        if wiring := self.wirings.get(name):
            try:
                self.kernel.set_state(wiring.index, KERNEL_STATES[state])
            except Refused as refused:
                if refused.number not in GONE:
                    raise

    def gate(self) -> None:
        """Have the gate let pass what is open. Ends the process when that cannot be told: the next one begins with all shut."""
        now = time.monotonic()
        names = [n for n in self.wirings if self.states.get(n, State.DISCARDING) is not State.DISCARDING]
        root = self.core.node.trees[CIST].root_port if self.core else ""
        anchor = root if root in names else next(iter(names), "")
        lasting = float(OPEN_FOR * self.wish.hello)
        wanted = {name: 0.0 if name == anchor else lasting for name in names}
        if wanted == self.opened and now < self.renew_at:
            return
        every = [name for name, _, _ in self.wish.ports]
        script = opening(self.wish.bridge, wanted, [name for name in every if name not in wanted])
        if not self.load(script, subprocess.DEVNULL):
            print(f"{time.strftime('%FT%T')} the gate is gone, and made anew", flush=True)
            if not self.load(table_text(self.wish.bridge, sorted(every)) + script, None):
                raise OSError(errno.EIO, "nft does not take the gate")
        self.opened, self.renew_at = wanted, now + (self.wish.hello if len(wanted) > 1 else LOOK_AGAIN)

    def load(self, script: str, errors: int | None) -> bool:
        return subprocess.run(["nft", "-f", "-"], input=script.encode(), stderr=errors, timeout=60, check=False).returncode == 0

    def write(self) -> None:
        """Tell in a file how the trees are."""
        state = told(self.core, time.monotonic()) if self.core is not None else {"trees": {}, "ports": {}}
        text = json.dumps({k: v for k, v in state.items() if k != "since"})
        if text != self.written:
            self.written = text
            replace(self.folder / STATE, json.dumps(state))


def speak(folder: Path, ready: int) -> NoReturn:
    """The process that speaks."""
    Speaker(folder).run(ready)


if __name__ == "__main__":
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    sys.exit(watch(Path(sys.argv[1]), speak, "another process speaks for this bridge"))
