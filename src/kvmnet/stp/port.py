"""A port, and what one tree knows of it: the variables of 802.1Q-2018, 13.27, by their names. Pure.

Timers are the moment at which they run out, in seconds of the caller's clock; what is past has run out.
"""
from __future__ import annotations

from enum import StrEnum

from kvmnet.records import dataclass
from kvmnet.stp.bpdu import Message
from kvmnet.stp.vectors import CIST, Role, State, Times, Vector

MIGRATE = 3.0
"""Seconds for which a port speaks on as it does after it changed the protocol, and waits until it takes itself for an edge."""
NEVER = Vector(0, 0, 0, 0, 0, 0)
UNTOLD = Times()


class Info(StrEnum):
    """Where what a port goes by comes from."""

    DISABLED = "disabled"
    AGED = "aged"
    MINE = "mine"
    RECEIVED = "received"


@dataclass(frozen=True, slots=True)
class PortConfig:
    """What is wished of a port."""

    name: str
    number: int
    """1 to 4095."""
    priority: int = 128
    """A multiple of 16, at most 240."""
    cost: int = 2000
    instance_costs: tuple[tuple[int, int], ...] = ()
    """(instance, cost) where it is another one."""
    edge: bool = False
    """Only end stations are behind it: it forwards at once, until a BPDU comes in."""
    auto_edge: bool = True
    """It is taken for such a port when no BPDU has come in for a while."""
    point_to_point: bool = True
    """At most one bridge is behind it."""
    root_guard: bool = False
    """It never leads to a root."""
    bpdu_guard: bool = False
    """A BPDU that comes in shuts it."""
    restricted_tcn: bool = False
    """Topology changes behind it are not told to others."""


@dataclass(slots=True)
class TreePort:
    """What one tree knows of one port."""

    tree: int
    info: Info = Info.DISABLED
    role: Role = Role.DISABLED
    selected_role: Role = Role.DISABLED
    selected: bool = False
    reselect: bool = True
    updt_info: bool = False
    agree: bool = False
    agreed: bool = False
    proposed: bool = False
    proposing: bool = False
    sync: bool = False
    synced: bool = False
    re_root: bool = False
    disputed: bool = False
    mastered: bool = False
    learn: bool = False
    forward: bool = False
    state: State = State.DISCARDING
    priority: Vector = NEVER
    """portPriority: what the port goes by."""
    times: Times = UNTOLD
    designated: Vector = NEVER
    """designatedPriority: what it would say itself."""
    designated_times: Times = UNTOLD
    message: Message | None = None
    """What came in and is not judged yet."""
    changing: bool = False
    """The topology-change machine is past LEARNING."""
    idle: bool = False
    """It is INACTIVE."""
    rcvd_tc: bool = False
    tc_prop: bool = False
    info_until: float = 0
    """rcvdInfoWhile."""
    fd_until: float = 0
    """fdWhile."""
    rr_until: float = 0
    """rrWhile."""
    rb_until: float = 0
    """rbWhile."""
    tc_until: float = 0
    """tcWhile."""

    def timers(self) -> tuple[float, ...]:
        return self.info_until, self.fd_until, self.rr_until, self.rb_until, self.tc_until


@dataclass(slots=True)
class Port:
    """One port of a bridge."""

    config: PortConfig
    trees: dict[int, TreePort]
    up: bool = False
    """It has a carrier."""
    tripped: bool = False
    """A BPDU came in where none may: it stays shut until it loses its carrier."""
    oper_edge: bool = False
    send_rstp: bool = True
    info_internal: bool = False
    rcvd_internal: bool = False
    heard_outside: Vector | None = None
    """What the common tree said in the last message."""
    rcvd_rstp: bool = False
    rcvd_stp: bool = False
    rcvd_tcn: bool = False
    rcvd_tc_ack: bool = False
    tc_ack: bool = False
    new_info: bool = False
    new_info_msti: bool = False
    tx_count: int = 0
    tx_next: float = 0
    """When the count of messages sent goes down by one."""
    hello_at: float = 0
    """helloWhen."""
    migrate_until: float = 0
    """mdelayWhile."""
    edge_until: float = 0
    """edgeDelayWhile."""
    heard: int = 0
    """BPDUs that came in."""
    sent: int = 0

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def enabled(self) -> bool:
        return self.up and not self.tripped

    @property
    def common(self) -> TreePort:
        return self.trees[CIST]

    def instances(self) -> list[TreePort]:
        return [t for number, t in self.trees.items() if number != CIST]

    def tell(self, tree: TreePort) -> None:
        """A message has something new to say of *tree*."""
        if tree.tree == CIST:
            self.new_info = True
        else:
            self.new_info_msti = True

    def timers(self) -> list[float]:
        own = [self.hello_at, self.migrate_until, self.edge_until, *([self.tx_next] if self.tx_count else [])]
        return own + [t for tree in self.trees.values() for t in tree.timers()]

