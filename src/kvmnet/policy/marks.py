"""Bits of the packet mark that kvmnet uses; everything else is left alone. Pure."""

GUEST = 0x0800_0000
"""Set in bridge prerouting on a guest's frame that its guard has judged and let pass."""
ROUTED = 0x0400_0000
"""Set in inet forward and input on a packet that kvmnet's rules have judged and let pass."""

NIC = 0x0000_FFFF
"""Number of the NIC that sent the packet, where the document has groups or tenants; 0 for none."""
KNOWN = 0x0001_0000
"""Bridges without connection tracking of their own: the packet belongs to a flow that was let in."""
FRESH = 0x0002_0000
"""The same: it begins a flow."""
REJECTED = 0x0004_0000
"""The same: groups refuse it with an answer, which only the IP stack can send."""
LONE = 0x0008_0000
"""The NIC that sent the packet is isolated from others of its network."""
EXCESS = 0x0010_0000
"""Bridges without connection tracking of their own: the NIC that sent the packet has more flows than its limit."""
BEGINS = 0x0020_0000
"""The same: no flow of it is in the table yet."""
