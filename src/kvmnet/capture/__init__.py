"""``kvmnet capture``: what passes at a NIC of a guest, a bridge or an uplink, into a file or onto the terminal."""
