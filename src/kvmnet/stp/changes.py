"""Topology changes: who tells whom, and when learned addresses are forgotten (802.1Q-2018, 13.38). Pure."""
from __future__ import annotations

from kvmnet.stp.node import Flush, Node
from kvmnet.stp.port import Port, TreePort
from kvmnet.stp.vectors import CIST, Role, State

ACTIVE = frozenset({Role.ROOT, Role.DESIGNATED, Role.MASTER})


def follow(node: Node, port: Port, tree: TreePort) -> bool:
    """One step of the topology change machine; whether there was one."""
    if tree.idle:
        if not tree.learn:
            return False
        tree.idle = False
        return True
    active = tree.role in ACTIVE
    return changing(node, port, tree, active=active) if tree.changing else learning(node, port, tree, active=active)


def learning(node: Node, port: Port, tree: TreePort, *, active: bool) -> bool:
    forget_news(port, tree)
    if active and tree.forward and not port.oper_edge:
        announce(node, port, tree)
        node.set_tc_prop(port, tree.tree)
        port.tell(tree)
        tree.changing = True
        return True
    if not active and not tree.learn and tree.state is State.DISCARDING:
        tree.idle, tree.tc_until = True, 0
        node.effects.append(Flush(port.name, tree.tree))
        if tree.tree == CIST:
            port.tc_ack = False
        return True
    return False


def forget_news(port: Port, tree: TreePort) -> None:
    tree.rcvd_tc = tree.tc_prop = False
    if tree.tree == CIST:
        port.rcvd_tcn = port.rcvd_tc_ack = False


def changing(node: Node, port: Port, tree: TreePort, *, active: bool) -> bool:
    common = tree.tree == CIST
    if not active or port.oper_edge:
        tree.changing = False
    elif common and port.rcvd_tcn:
        announce(node, port, tree)
        heard(node, port, tree)
    elif tree.rcvd_tc:
        heard(node, port, tree)
    elif tree.tc_prop:
        announce(node, port, tree)
        node.effects.append(Flush(port.name, tree.tree))
        tree.tc_prop = False
    elif common and port.rcvd_tc_ack:
        tree.tc_until, port.rcvd_tc_ack = 0, False
    else:
        return False
    return True


def heard(node: Node, port: Port, tree: TreePort) -> None:
    tree.rcvd_tc = False
    if tree.tree == CIST:
        port.rcvd_tcn = False
        port.tc_ack = port.tc_ack or tree.role is Role.DESIGNATED
    node.set_tc_prop(port, tree.tree)


def announce(node: Node, port: Port, tree: TreePort) -> None:
    """Messages of the port speak of a change for a while (newTcWhile)."""
    if not node.past(tree.tc_until):
        return
    if port.send_rstp:
        tree.tc_until = node.now + node.config.hello + 1
        port.tell(tree)
    else:
        times = node.trees[CIST].root_times
        tree.tc_until = node.now + times.max_age + times.forward_delay
