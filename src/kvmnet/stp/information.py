"""What a port goes by: its own wish, or what a neighbour told it (802.1Q-2018, 13.33, the port information machine). Pure."""
from __future__ import annotations

from enum import Enum, auto

from kvmnet.stp.bpdu import Message
from kvmnet.stp.node import Node, identifier_of
from kvmnet.stp.port import Info, Port, TreePort
from kvmnet.stp.vectors import CIST, Protocol, Role, Times, Vector

OLD = 1.0
"""Seconds that a message from outside of the region ages at each bridge."""


class Judgement(Enum):
    SUPERIOR = auto()
    REPEATED = auto()
    INFERIOR = auto()
    NOT_DESIGNATED = auto()
    OTHER = auto()


def inform(node: Node, port: Port, tree: TreePort) -> bool:
    """One step of the machine; whether there was one."""
    if not port.enabled:
        tree.message = None
        return tree.info is not Info.DISABLED and renounce(tree, Info.DISABLED)
    if tree.info is Info.DISABLED:
        return renounce(tree, Info.AGED)
    if tree.selected and tree.updt_info:
        update(port, tree)
        return True
    if tree.updt_info or (tree.tree != CIST and port.common.message is not None):
        return False
    if tree.message is not None:
        message, tree.message = tree.message, None
        receive(node, port, tree, message)
        return True
    if tree.info is Info.RECEIVED and node.past(tree.info_until):
        return renounce(tree, Info.AGED)
    return False


def renounce(tree: TreePort, info: Info) -> bool:
    """What was heard counts no more."""
    if info is Info.DISABLED:
        tree.proposing = tree.proposed = tree.agree = tree.agreed = False
    tree.info, tree.reselect, tree.selected = info, True, False
    return True


def update(port: Port, tree: TreePort) -> None:
    """The port says what the bridge itself knows."""
    tree.proposing = tree.proposed = False
    tree.agreed = tree.agreed and tree.info is Info.MINE and holds_for(tree.designated, tree.priority)
    tree.synced = tree.synced and tree.agreed
    tree.priority, tree.times = tree.designated, tree.designated_times
    tree.updt_info, tree.info = False, Info.MINE
    port.tell(tree)


def holds_for(now: Vector, then: Vector) -> bool:
    """Whether an agreement about *then* holds for *now*, which is no worse. The standard asks no more than that; but what is
    better and has another root may be old news that goes round in a circle, which then forwards (K. Elmeleegy et al.,
    "Understanding and mitigating the effects of count to infinity in Ethernet networks", 2009)."""
    return now <= then and (now.root, now.regional) == (then.root, then.regional)


def receive(node: Node, port: Port, tree: TreePort, message: Message) -> None:
    match judge(port, tree, message):
        case Judgement.SUPERIOR:
            tree.agreed = tree.proposing = tree.synced = False
            record_proposal(port, tree, message)
            set_tc_flags(port, tree, message)
            received = message.vector._replace(receiver=identifier_of(port))
            tree.agree = tree.agree and tree.info is Info.RECEIVED and holds_for(received, tree.priority)
            port.info_internal = port.rcvd_internal
            tree.priority, tree.times = received, sane(message.times)
            tree.info_until = node.now + lifetime(port, tree)
            tree.info, tree.reselect, tree.selected = Info.RECEIVED, True, False
        case Judgement.REPEATED:
            record_proposal(port, tree, message)
            set_tc_flags(port, tree, message)
            tree.info_until = node.now + lifetime(port, tree)
        case Judgement.INFERIOR:
            record_dispute(port, tree, message)
        case Judgement.NOT_DESIGNATED:
            record_agreement(node, port, tree, message)
            set_tc_flags(port, tree, message)
        case Judgement.OTHER:
            pass


def judge(port: Port, tree: TreePort, message: Message) -> Judgement:
    """How a message compares to what the port goes by (13.29.13)."""
    vector = message.vector._replace(receiver=identifier_of(port))
    if message.flags.role is not Role.DESIGNATED:
        return Judgement.NOT_DESIGNATED if vector >= tree.priority else Judgement.OTHER
    same = vector == tree.priority and sane(message.times) == tree.times and port.info_internal == port.rcvd_internal
    if same:
        return Judgement.REPEATED if tree.info is Info.RECEIVED else Judgement.INFERIOR
    mine = tree.info is Info.MINE and vector == tree.priority
    if not mine and (vector <= tree.priority or vector.same_origin(tree.priority)):
        return Judgement.SUPERIOR
    return Judgement.INFERIOR


def sane(times: Times) -> Times:
    """*times* within what the standard allows, whoever sent them (13.25.7 to 13.25.9)."""
    return Times(times.age, min(max(times.max_age, 6), 40), min(max(times.hello, 1), 10), min(max(times.forward_delay, 4), 30),
                 min(times.hops, 40))


def lifetime(port: Port, tree: TreePort) -> float:
    """Seconds that what came in counts: three hellos, or none when it has come too far (updtRcvdInfoWhile)."""
    times = tree.times
    alive = times.hops > 1 if port.rcvd_internal else times.age + OLD <= times.max_age
    return 3 * times.hello if alive else 0


def record_proposal(port: Port, tree: TreePort, message: Message) -> None:
    if message.flags.proposal and message.flags.role is Role.DESIGNATED:
        tree.proposed = True
    if tree.tree == CIST and not port.rcvd_internal:
        for inner in port.instances():
            inner.proposed = tree.proposed


def record_agreement(node: Node, port: Port, tree: TreePort, message: Message) -> None:
    """Whether the neighbour agrees that this port forwards."""
    agreed = (node.config.protocol >= Protocol.RSTP and port.config.point_to_point and message.flags.agreement
              and message.vector.root == tree.priority.root)
    if port.rcvd_internal:
        agreed = agreed and same_outside(port) and message.vector.regional == tree.priority.regional
    tree.agreed = agreed
    if agreed:
        tree.proposing = False
    if tree.tree == CIST and not port.rcvd_internal:
        for inner in port.instances():
            inner.agreed = agreed
            if agreed:
                inner.proposing = False


def same_outside(port: Port) -> bool:
    """An agreement about an instance holds only between bridges that see the same root outside and inside."""
    said, own = port.heard_outside, port.common.priority
    return said is not None and (said.root, said.external, said.regional) == (own.root, own.external, own.regional)


def record_dispute(port: Port, tree: TreePort, message: Message) -> None:
    """Somebody worse says that it is designated here, and already learns: it does not hear us (13.29.20)."""
    if not message.flags.learning:
        return
    tree.disputed, tree.agreed = True, False
    if tree.tree == CIST and not port.rcvd_internal:
        for inner in port.instances():
            inner.disputed, inner.agreed = True, False


def set_tc_flags(port: Port, tree: TreePort, message: Message) -> None:
    if message.flags.tc:
        tree.rcvd_tc = True
        if tree.tree == CIST and not port.rcvd_internal:
            for inner in port.instances():
                inner.rcvd_tc = True
    if tree.tree == CIST and message.flags.last:
        port.rcvd_tc_ack = True
