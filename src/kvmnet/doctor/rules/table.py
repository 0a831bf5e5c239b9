"""Every rule, in the order of the page. Pure."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from kvmnet.doctor.finding import Finding, ranked
from kvmnet.doctor.rules import (
    addresses,
    bridges,
    capacity,
    firewalls,
    guests,
    inside,
    ovn,
    services,
    sizes,
    switches,
    uplinks,
)
from kvmnet.doctor.view import View

Rule = Callable[[View], Iterable[Finding]]

SUBJECTS: Mapping[str, tuple[Rule, ...]] = {
    "Bridges and ports": (
        bridges.duplicate_mac, bridges.mac_moves, bridges.bridge_ring, bridges.frames_come_back, bridges.guest_learned_elsewhere, bridges.tap_has_guest_mac,
        bridges.tap_detached, bridges.tap_idle, bridges.tap_carrier_off, bridges.port_down, bridges.uplink_without_carrier, bridges.wireless_port, bridges.stp_delay,
        bridges.tree_silent,
        bridges.bridge_mac_floats, bridges.bridge_full, bridges.ageing_short, bridges.proxy_arp),
    "Addresses and routes": (
        addresses.address_on_port, addresses.subnet_overlap, addresses.address_twice, addresses.duplicate_detected, addresses.address_moves,
        addresses.wrong_neighbour, addresses.gateway_silent, addresses.route_without_link, addresses.route_error, addresses.prefix_without_route, addresses.ra_ignored, addresses.router_among_guests,
        addresses.two_routers, addresses.reverse_path, addresses.forwarding_off),
    "MTU and offloads": (sizes.mtu_island, sizes.tunnel_mtu, sizes.way_out_mtu, sizes.merged_frames_forwarded, sizes.checksum_errors),
    "Firewalls": (firewalls.forward_dropped, firewalls.bridge_netfilter, firewalls.input_dropped, firewalls.tunnel_blocked, firewalls.flows_half_seen, firewalls.masquerade_everywhere, firewalls.ipsec_policy),
    "Uplinks and tunnels": (uplinks.bond_partner, uplinks.bond_member_down, uplinks.bond_members_apart, uplinks.bond_unwatched, uplinks.bond_spreads_blindly,
                            uplinks.tunnel_without_peers, uplinks.tunnel_unanswered),
    "Open vSwitch and OVN": (switches.switch_silent, switches.switch_port_stale, switches.switch_without_flows,
                             ovn.ovn_controller_away, ovn.ovn_mapping_missing, ovn.ovn_port_without_flows, ovn.ovn_port_unknown, ovn.ovn_nat_without_gateway),
    "DHCP and DNS": (services.resolver_everywhere, services.server_dead, services.pool_full, services.lease_limit, services.range_off_subnet, services.reserved_is_leased,
                     services.two_dhcp_servers),
    "Tables and queues": (capacity.neighbour_table, capacity.conntrack_table, capacity.log_complains, capacity.backlog_overflow, capacity.port_overflow, capacity.netlink_lost, capacity.netem_left, capacity.queue_too_small, capacity.queue_too_slow),
    "Guests and the machine": (
        guests.guest_stopped, guests.card_missing, guests.iommu_missing, guests.iommu_group_shared, guests.cpu_stolen, guests.cpu_quota, guests.interrupts_on_one_cpu,
        guests.vhost_missing, guests.emulated_card, guests.queues_idle, guests.user_backend, guests.not_accelerated),
    "Inside guests, where an agent tells": (
        inside.guest_nic_down, inside.guest_other_mac, inside.guest_without_address, inside.guest_other_address, inside.guest_duplicate_address, inside.guest_other_prefix, inside.guest_subnet_overlap,
        inside.guest_without_route, inside.guest_wrong_neighbour, inside.guest_gateway_silent, inside.guest_mtu, inside.guest_nested_mtu, inside.guest_without_resolver,
        inside.guest_queues_unused, inside.guest_offloads_off),
}
"""Subject -> its rules. The code of a rule's findings is its name with hyphens."""
RULES: Mapping[str, Rule] = {rule.__name__.replace("_", "-"): rule for rules in SUBJECTS.values() for rule in rules}


def examine(view: View) -> tuple[Finding, ...]:
    """All findings, the worst first."""
    return ranked(finding for rule in RULES.values() for finding in rule(view))
