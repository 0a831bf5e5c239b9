"""Which role each port has in a tree (802.1Q-2018, 13.29.34 updtRolesTree, 13.34). Pure."""
from __future__ import annotations

from kvmnet.stp.information import OLD
from kvmnet.stp.node import Node, Tree, cost_of, identifier_of
from kvmnet.stp.port import Info, Port, TreePort
from kvmnet.stp.vectors import ADDRESS, CIST, Role, Times, Vector


def reselect(node: Node) -> bool:
    """Choose the roles anew in every tree where something changed; whether there was one. What changes in the common tree
    changes the edges of the instances."""
    stale = {tree.tree for _, tree in node.places() if tree.reselect}
    if CIST in stale:
        stale = set(node.trees)
    for number in sorted(stale):
        choose(node, node.trees[number])
        for _, tree in node.of_tree(number):
            tree.reselect, tree.selected = False, True
    return bool(stale)


def choose(node: Node, tree: Tree) -> None:
    """The root, the way to it, and the role of each port.

    A root that is worse than the last, or farther away, may be an echo of what this bridge once said itself: then every port
    that leads away is shut until its neighbour agrees. The standard leaves them open, and loops can come of it.
    """
    own = tree.identifier
    outermost = own if tree.number == CIST else 0
    best, times, root_port = Vector(outermost, 0, own, 0, own, 0), node.config.times, ""
    for port, seen in node.of_tree(tree.number):
        if leads_up(port, seen, own) and (path := path_by(port, seen, own)) < best:
            best, times, root_port = path, aged(port, seen), port.name
    moved = (best.root, best.external, best.regional) != (tree.root.root, tree.root.external, tree.root.regional)
    if best > tree.root:
        node.set_sync(tree.number)
    tree.root, tree.root_times, tree.root_port = best, times, root_port
    if tree.number == CIST and moved:
        sync_master(node)
    for port, seen in node.of_tree(tree.number):
        number = identifier_of(port)
        apart = tree.number == CIST and not port.send_rstp
        seen.designated = best._replace(bridge=own, port=number, receiver=number, **({"regional": own} if apart else {}))
        seen.designated_times = times._replace(hello=node.config.hello)
        seen.selected_role = role_of(port, seen, root_port, own)


def leads_up(port: Port, tree: TreePort, own: int) -> bool:
    """Whether what was heard at a port may name the root."""
    return (tree.info is Info.RECEIVED and not port.config.root_guard and tree.priority.bridge & ADDRESS != own & ADDRESS
            and (tree.tree == CIST or port.info_internal))


def path_by(port: Port, tree: TreePort, own: int) -> Vector:
    """The root path priority vector: what was heard, and what the way to it costs (13.10, 13.11)."""
    said, cost = tree.priority, cost_of(port, tree.tree)
    if tree.tree == CIST and not port.info_internal:
        return said._replace(external=said.external + cost, regional=own, internal=0)
    return said._replace(internal=said.internal + cost)


def aged(port: Port, tree: TreePort) -> Times:
    if port.info_internal:
        return tree.times._replace(hops=tree.times.hops - 1)
    return tree.times._replace(age=tree.times.age + OLD)


def sync_master(node: Node) -> None:
    """Another way out of the region: instances agree anew (13.29.28)."""
    for port, tree in node.places():
        if tree.tree != CIST and port.info_internal:
            tree.agree = tree.agreed = tree.synced = False
            tree.sync = True


def role_of(port: Port, tree: TreePort, root_port: str, own: int) -> Role:
    """The role of a port. Says with ``updt_info`` whether the port goes by something old."""
    tree.updt_info = False
    if tree.info is Info.DISABLED:
        return Role.DISABLED
    if tree.tree != CIST and port.common.info is Info.RECEIVED and not port.info_internal:
        return at_the_edge(port, tree)
    if tree.info is Info.RECEIVED:
        if port.name == root_port:
            return Role.ROOT
        if tree.designated >= tree.priority:
            return Role.BACKUP if tree.priority.bridge & ADDRESS == own & ADDRESS else Role.ALTERNATE
    tree.updt_info = differs(tree)
    return Role.DESIGNATED


def at_the_edge(port: Port, tree: TreePort) -> Role:
    """An instance ends at the region's edge, where it goes with the common tree."""
    tree.updt_info = differs(tree)
    outer = port.common.selected_role
    return Role.MASTER if outer is Role.ROOT else outer


def differs(tree: TreePort) -> bool:
    return tree.info is not Info.MINE or tree.priority != tree.designated or tree.times != tree.designated_times
