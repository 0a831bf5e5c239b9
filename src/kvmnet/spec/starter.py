"""A document to start from, with comments. Pure."""
from __future__ import annotations

UPLINK = "eth0"
"""Stands for the host's NIC where none is known."""

_TEXT = """\
# A kvmnet document: one NAT network and two guests. Change it, then:
#   kvmnet plan FILE      what would change; nothing is touched
#   kvmnet apply FILE     make it so, in one transaction (--confirm 60: undone unless confirmed)
#   kvmnet check          prove it with packets
# Every option is in docs/reference.md; `kvmnet schema` prints a JSON Schema for editors.
version: 1

# NICs of this host. They are borrowed: only what is written here is changed, and destroy gives it back.
uplinks:
  wan:
    device: {device}
    # mtu: 9000

networks:
  # Guests behind the host's address. The host is 192.168.100.1 and serves DHCP and DNS.
  lan:
    mode: nat            # or routed, isolated, bridge
    uplink: wan
    subnet: 192.168.100.0/24
    pool: 192.168.100.100-192.168.100.199   # for NICs without an address of their own
    subnet6: fd00:100::/64
    # forwards:          # ports of the host's uplink, handed to guests
    #   - {{port: 8080, to: web1, to_port: 80}}
    # allow:             # services of the host that guests may reach, beyond DHCP, DNS and ping
    #   - {{port: 3128}}

  # Guests on the uplink's own segment, as if they were plugged into the same switch.
  # office: {{mode: bridge, uplink: wan}}

  # No way out at all.
  # lab: {{mode: isolated, subnet: 10.10.0.0/24}}

vms:
  # A guest that kvmnet starts itself. image: tiny is its own small test guest.
  web1:
    run: {{image: tiny, memory: 256M, cpus: 1}}
    nics:
      - network: lan
        ip: 192.168.100.10   # without it: one from the pool, the same for ever
  web2:
    run: {{image: tiny}}
    nics:
      - network: lan
        model: e1000e        # virtio is the default, and the fastest

  # A guest that something else starts (libvirt, your own script): kvmnet prepares the tap, guards it and
  # prints what to pass to QEMU.
  # db1:
  #   owner: libvirt-qemu
  #   nics:
  #     - {{network: lan, mac: "52:54:00:aa:bb:01"}}
"""


def starter(uplink: str | None = None) -> str:
    """A commented document with one NAT network and two guests. *uplink*: the host's NIC; a placeholder
    when not given."""
    device = uplink or f"{UPLINK}   # write the NIC of this host that leads outside; ip route shows it"
    return _TEXT.format(device=device)
