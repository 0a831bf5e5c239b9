"""Rules that nft prints wrong: flags of tables."""
from __future__ import annotations

from kvmnet.facts.nft import commands, flags_of, with_flags

TEXT = """table bridge keeper { # handle 1
	flags owner

	set taps { # handle 2
		type ifname
		flags interval
	}

	map m {
		type ifname : verdict
	}

	chain c { # handle 3
		type filter hook prerouting priority filter; policy accept;
	}
}
table inet theirs { # handle 9
	set s {
		type ipv4_addr
		flags timeout
	}
}
table ip both {
	flags owner,dormant
}
"""


def test_flags_of_tables_are_not_those_of_their_sets() -> None:
    assert flags_of(TEXT) == {("bridge", "keeper"): ["owner"], ("inet", "theirs"): [], ("ip", "both"): ["owner", "dormant"]}


def test_tables_with_flags_are_read_by_what_is_in_them() -> None:
    assert list(commands(TEXT)) == ["list set bridge keeper taps", "list map bridge keeper m", "list chain bridge keeper c", "list table inet theirs"]


def test_garbage_is_replaced_by_what_the_text_says() -> None:
    rows = [{"table": {"family": "bridge", "name": "keeper", "flags": "saddr"}}, {"table": {"family": "inet", "name": "theirs", "flags": "x"}}, {"chain": {"flags": "kept"}}]
    assert with_flags(rows, TEXT) == [{"table": {"family": "bridge", "name": "keeper", "flags": ["owner"]}}, {"table": {"family": "inet", "name": "theirs"}}, {"chain": {"flags": "kept"}}]
