"""What a port sends, and when (802.1Q-2018, 13.32). Pure."""
from __future__ import annotations

from kvmnet.stp.bpdu import Bpdu, Flags, Message
from kvmnet.stp.node import TX_HOLD, Node, Send
from kvmnet.stp.port import Port, TreePort
from kvmnet.stp.vectors import Protocol, Role, State


def transmit(node: Node, port: Port) -> None:
    """Send what is to be said now. To be called when everything else has come to rest."""
    if not port.enabled:
        port.new_info = port.new_info_msti = True
        port.tx_count = 0
        port.hello_at = node.now
        return
    while port.tx_count and node.past(port.tx_next):
        port.tx_count -= 1
        port.tx_next += 1
    if not all(t.selected and not t.updt_info for t in port.trees.values()):
        return
    if node.past(port.hello_at):
        port.hello_at = node.now + node.config.hello
        port.new_info = port.new_info or speaks(node, port.common)
        port.new_info_msti = port.new_info_msti or any(speaks(node, t) for t in port.instances())
    if port.tx_count < TX_HOLD and (bpdu := said(node, port)):
        if not port.tx_count:
            port.tx_next = node.now + 1
        port.tx_count += 1
        port.sent += 1
        port.new_info = port.new_info_msti = port.tc_ack = False
        node.effects.append(Send(port.name, bpdu))


def speaks(node: Node, tree: TreePort) -> bool:
    return tree.role is Role.DESIGNATED or (tree.role is Role.ROOT and not node.past(tree.tc_until))


def said(node: Node, port: Port) -> Bpdu | None:
    """The message that is due; None when nothing is."""
    role = port.common.role
    if port.send_rstp:
        at_way_out = any(t.role is Role.MASTER for t in port.instances())
        due = port.new_info or (port.new_info_msti and not at_way_out)
        return rapid(node, port) if due and role is not Role.DISABLED else None
    if not port.new_info:
        return None
    if role is Role.DESIGNATED:
        tc = not node.past(port.common.tc_until)
        common = port.common
        return Bpdu(Protocol.STP, common=Message(Flags(tc=tc, last=port.tc_ack), common.designated, common.designated_times))
    if role is Role.ROOT:
        return Bpdu(Protocol.STP, notification=True)
    port.new_info = False
    return None


def rapid(node: Node, port: Port) -> Bpdu:
    """A message of RSTP, or of MSTP where the bridge speaks it."""
    common = port.common
    flags = flags_of(node, common)._replace(last=False)
    if common.role is Role.ROOT and not port.info_internal:
        flags = flags._replace(agreement=flags.agreement and all(t.agree for t in port.instances()))
    vector, times = common.designated, common.designated_times
    if node.config.protocol is not Protocol.MSTP:
        return Bpdu(Protocol.RSTP, common=Message(flags, vector, times))
    instances = {t.tree: Message(flags_of(node, t), t.designated, t.designated_times) for t in port.instances()}
    return Bpdu(Protocol.MSTP, common=Message(flags, vector, times), region=node.region, inner=Message(flags, vector, times),
                instances=instances)


def flags_of(node: Node, tree: TreePort) -> Flags:
    return Flags(tree.role, tc=not node.past(tree.tc_until), proposal=tree.proposing, learning=tree.state is not State.DISCARDING,
                 forwarding=tree.state is State.FORWARDING, agreement=tree.agree)

