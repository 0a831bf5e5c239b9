"""How a port comes to forward in its role, and stops (802.1Q-2018, 13.35 to 13.37: port role and port state transitions). Pure.

A port forwards at once when no loop can come of it: a root port when no other port was one a short while ago, a designated
port when its neighbour agrees, which the neighbour does only after it has shut what could close a loop. Otherwise time decides.
"""
from __future__ import annotations

from kvmnet.stp.node import Node
from kvmnet.stp.port import MIGRATE, Port, TreePort
from kvmnet.stp.vectors import CIST, Protocol, Role, State

ORDER = {State.DISCARDING: 0, State.LEARNING: 1, State.FORWARDING: 2}
SHUT = frozenset({Role.DISABLED, Role.ALTERNATE, Role.BACKUP})


def take_role(node: Node, port: Port, tree: TreePort) -> bool:
    """One step of the role machine; whether there was one."""
    if not tree.selected or tree.updt_info:
        return False
    if tree.role is not tree.selected_role:
        begin(node, tree)
        return True
    return STEPS[tree.role](node, port, tree)


def begin(node: Node, tree: TreePort) -> None:
    """The first step in another role. A root port that loses its role counts as one for a while, as others take it for one."""
    delay = node.forward_delay()
    if tree.role is Role.ROOT:
        tree.rr_until = node.now + delay
    if tree.role is Role.BACKUP:
        tree.rb_until = node.now + 2 * node.config.hello
    if tree.role in SHUT:
        tree.fd_until = node.now + delay
    tree.role = tree.selected_role
    if tree.role in SHUT:
        tree.learn = tree.forward = False


def take_state(node: Node, port: Port, tree: TreePort) -> bool:
    """One step of the state machine; whether there was one. At the region's edge no instance is ahead of the common tree."""
    state = State.DISCARDING if not tree.learn else State.FORWARDING if tree.forward else State.LEARNING
    if tree.tree != CIST and not port.rcvd_internal and ORDER[port.common.state] < ORDER[state]:
        state = port.common.state
    if state is tree.state:
        return False
    node.set_state(port, tree, state)
    return True


def shut(node: Node, port: Port, tree: TreePort) -> bool:
    """Disabled, alternate and backup ports: out of it, and so in step with the root."""
    if tree.state is not State.DISCARDING:
        return False
    tree.rr_until = 0
    if tree.role is not Role.DISABLED and answer(node, port, tree):
        return True
    if tree.synced and not tree.sync and not tree.re_root:
        return False
    tree.synced, tree.sync, tree.re_root = True, False, False
    return True


def answer(node: Node, port: Port, tree: TreePort) -> bool:
    """Towards the root: a proposal is agreed to when everything else is in step."""
    if tree.proposed and not tree.agree:
        node.set_sync(tree.tree)
        tree.proposed = False
        return True
    if (node.all_synced(tree.tree) and not tree.agree) or (tree.proposed and tree.agree):
        tree.proposed = tree.sync = False
        tree.agree = True
        port.tell(tree)
        return True
    return False


def root(node: Node, port: Port, tree: TreePort) -> bool:
    tree.rr_until = node.now + node.forward_delay()
    if answer(node, port, tree):
        return True
    if (tree.agreed and not tree.synced) or (tree.sync and tree.synced):
        tree.synced, tree.sync = True, False
        return True
    if not tree.forward and not tree.re_root:
        node.set_re_root(tree.tree)
        return True
    if tree.re_root and tree.forward:
        tree.re_root = False
        return True
    soon = (node.config.protocol >= Protocol.RSTP and node.re_rooted(tree.tree, port) and node.past(tree.rb_until)
            and node.all_synced(tree.tree))
    return advance(node, tree, ready=node.past(tree.fd_until) or soon)


def advance(node: Node, tree: TreePort, *, ready: bool) -> bool:
    """From discarding to learning to forwarding."""
    if not ready or tree.forward:
        return False
    if not tree.learn:
        tree.learn = True
        tree.fd_until = node.now + node.forward_delay()
    else:
        tree.forward = True
        tree.fd_until = node.now
    return True


def designated(node: Node, port: Port, tree: TreePort) -> bool:
    if not tree.forward and not tree.agreed and not tree.proposing and not port.oper_edge:
        tree.proposing = True
        if tree.tree == CIST:
            port.edge_until = node.now + (MIGRATE if port.config.point_to_point else node.config.max_age)
        port.tell(tree)
        return True
    if stepped(node, port, tree):
        return True
    if (node.past(tree.fd_until) or tree.agreed or port.oper_edge) and (node.past(tree.rr_until) or not tree.re_root) and not tree.sync:
        return advance(node, tree, ready=True)
    return False


def stepped(node: Node, port: Port, tree: TreePort) -> bool:
    """Away from the root: in step when shut, agreed or an edge; shut when asked to be in step, or when somebody disputes it."""
    shut_already = not tree.learn and tree.state is State.DISCARDING
    if not tree.synced and (shut_already or tree.agreed or port.oper_edge):
        tree.rr_until, tree.synced, tree.sync = 0, True, False
        return True
    if tree.sync and tree.synced:
        tree.rr_until, tree.sync = 0, False
        return True
    if tree.re_root and node.past(tree.rr_until):
        tree.re_root = False
        return True
    wanted = (tree.sync and not tree.synced) or (tree.re_root and not node.past(tree.rr_until)) or tree.disputed
    if wanted and not port.oper_edge and (tree.learn or tree.disputed):
        tree.learn = tree.forward = tree.disputed = False
        tree.fd_until = node.now + node.forward_delay()
        return True
    return False


def master(node: Node, port: Port, tree: TreePort) -> bool:
    """An instance at the way out of its region, which is the common tree's root port.

    Another way out may still be open at another bridge of the region, and nothing in the messages says that it is shut for
    this instance: where there are others, time decides. The standard goes ahead, and loops can come of it.
    """
    if answer(node, port, tree) or stepped(node, port, tree):
        return True
    alone = not any(p.enabled and p.rcvd_internal for p in node.ports.values())
    return advance(node, tree, ready=node.past(tree.fd_until) or (alone and node.all_synced(tree.tree)))


STEPS = {Role.DISABLED: shut, Role.ALTERNATE: shut, Role.BACKUP: shut, Role.ROOT: root, Role.DESIGNATED: designated,
         Role.MASTER: master}
