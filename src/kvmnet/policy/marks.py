"""Bits of the packet mark that kvmnet uses; everything else is left alone. Pure."""

GUEST = 0x0800_0000
"""Set in bridge prerouting on a guest's frame that its guard has judged and let pass."""
ROUTED = 0x0400_0000
"""Set in inet forward and input on a packet that kvmnet's rules have judged and let pass."""
