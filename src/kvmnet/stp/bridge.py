"""A bridge that speaks RSTP or MSTP: what happens goes in, what is to be done comes out. Pure.

Effects are to be carried out in their order, each before the next. When one fails, a port that was to be shut must be taken
out of service (``port_down``) before anything is sent.
"""
from __future__ import annotations

from kvmnet.stp.bpdu import Bpdu
from kvmnet.stp.changes import follow
from kvmnet.stp.information import inform
from kvmnet.stp.node import BridgeConfig, Effect, Node, SetState, Tripped
from kvmnet.stp.port import MIGRATE, Port, PortConfig, TreePort
from kvmnet.stp.roles import take_role, take_state
from kvmnet.stp.selection import reselect
from kvmnet.stp.transmit import transmit
from kvmnet.stp.vectors import CIST, Protocol, Role, State

PATIENCE = 10_000
"""Steps after which machines that find no rest are a mistake of ours."""


class Bridge:
    """One bridge. ``now``: seconds of a clock that never goes back."""

    def __init__(self, config: BridgeConfig, now: float = 0):
        self.node = Node(config, now)

    @property
    def config(self) -> BridgeConfig:
        return self.node.config

    @property
    def ports(self) -> dict[str, Port]:
        return self.node.ports

    def add_port(self, config: PortConfig, now: float) -> list[Effect]:
        """A port that joins, without a carrier until ``port_up``: it is shut in every tree at once."""
        self.node.now = now
        trees = {number: TreePort(number) for number in self.node.trees}
        port = Port(config, trees, oper_edge=config.edge, send_rstp=self.config.protocol >= Protocol.RSTP)
        self.ports[config.name] = port
        self.node.effects += [SetState(config.name, number, State.DISCARDING) for number in trees]
        return self.settle()

    def remove_port(self, name: str, now: float) -> list[Effect]:
        self.node.now = now
        self.ports.pop(name, None)
        self.again()
        return self.settle()

    def configure(self, config: PortConfig, now: float) -> list[Effect]:
        """Other wishes for a port, which keeps what it knows."""
        self.node.now = now
        self.ports[config.name].config = config
        self.again()
        return self.settle()

    def again(self) -> None:
        for _, tree in self.node.places():
            tree.reselect, tree.selected = True, False

    def port_up(self, name: str, now: float) -> list[Effect]:
        port = self.ports[name]
        self.node.now = now
        if not port.up:
            port.up = True
            port.send_rstp = self.config.protocol >= Protocol.RSTP
            port.oper_edge = port.config.edge
            port.migrate_until = port.edge_until = now + MIGRATE
        return self.settle()

    def port_down(self, name: str, now: float) -> list[Effect]:
        """A port lost its carrier, or must not be used."""
        port = self.ports[name]
        self.node.now = now
        port.up = port.tripped = False
        return self.settle()

    def receive(self, name: str, bpdu: Bpdu, now: float) -> list[Effect]:
        """A BPDU came in by a port."""
        port = self.ports[name]
        self.node.now = now
        if not port.enabled:
            return self.settle()
        port.heard += 1
        if port.config.bpdu_guard:
            port.tripped = True
            effects = self.settle()
            return [*effects, Tripped(name)]
        port.oper_edge = False
        port.edge_until = now + MIGRATE
        self.hear(port, bpdu)
        return self.settle()

    def hear(self, port: Port, bpdu: Bpdu) -> None:
        port.rcvd_stp = port.rcvd_stp or bpdu.version is Protocol.STP
        port.rcvd_rstp = port.rcvd_rstp or bpdu.version is not Protocol.STP
        port.rcvd_internal = (self.config.protocol is Protocol.MSTP and bpdu.version is Protocol.MSTP
                              and bpdu.region == self.node.region)
        if bpdu.notification:
            port.rcvd_tcn = True
            for tree in port.instances():
                tree.rcvd_tc = True
            return
        port.common.message = bpdu.inner if port.rcvd_internal else bpdu.common
        port.heard_outside = port.common.message.vector if port.common.message else None
        if port.rcvd_internal:
            for number, message in (bpdu.instances or {}).items():
                if number != CIST and number in port.trees:
                    port.trees[number].message = message

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        self.node.now = now
        return self.settle()

    def deadline(self) -> float | None:
        """When ``tick`` is to be called next; None while there is no port."""
        ahead = [t for port in self.ports.values() if port.enabled for t in port.timers() if t > self.node.now]
        return min(ahead, default=None)

    def settle(self) -> list[Effect]:
        """Run every machine until none has anything more to do, then send."""
        for _ in range(PATIENCE):
            if not any(list(self.steps())):
                break
        else:
            raise AssertionError("the state machines of the spanning tree find no rest")
        for port in self.ports.values():
            transmit(self.node, port)
        effects, self.node.effects = self.node.effects, []
        return effects

    def steps(self) -> list[bool]:
        node = self.node
        made = [migrate(node, port) | find_edge(node, port) for port in self.ports.values()]
        made += [inform(node, port, tree) for port, tree in node.places()]
        made.append(reselect(node))
        for port, tree in node.places():
            made += [take_role(node, port, tree), take_state(node, port, tree), follow(node, port, tree)]
        return made


def migrate(node: Node, port: Port) -> bool:
    """Speak as the neighbour does: STP to one that speaks only that (802.1Q-2018, 13.30, protocol migration)."""
    rapid = node.config.protocol >= Protocol.RSTP
    if not port.enabled or not node.past(port.migrate_until):
        port.rcvd_rstp = port.rcvd_stp = False
        return False
    wanted = port.send_rstp
    if port.send_rstp and port.rcvd_stp:
        wanted = False
    elif rapid and not port.send_rstp and port.rcvd_rstp:
        wanted = True
    port.rcvd_rstp = port.rcvd_stp = False
    if wanted is port.send_rstp:
        return False
    port.send_rstp = wanted
    port.migrate_until = node.now + MIGRATE
    for tree in port.trees.values():
        tree.reselect, tree.selected = True, False
    return True


def find_edge(node: Node, port: Port) -> bool:
    """A designated port that proposes for a while and hears nobody leads to end stations alone (13.31, bridge detection)."""
    if port.oper_edge or not port.config.auto_edge or not port.enabled or not port.send_rstp:
        return False
    if port.common.proposing and node.past(port.edge_until) and port.common.role is Role.DESIGNATED:
        port.oper_edge = True
        return True
    return False
