"""What nft prints for a text is asked once by a command, and what the kernel filled is read only where it would be lost."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.drivers.nftables import texts as module
from kvmnet.drivers.nftables.driver import NftablesDriver, touches_memory
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.nftables.standing import Standing
from kvmnet.drivers.nftables.tables import GUARD
from kvmnet.drivers.nftables.texts import DAMAGED, SETS_CHANGED, Texts
from kvmnet.engine.plan import Update
from kvmnet.host.paths import Paths
from kvmnet.policy.flows import HEAD
from kvmnet.records import replace

OLD = NftTable(name=GUARD, text="chain a { counter accept; }\n")
NEW = NftTable(name=GUARD, text="chain a { counter drop; }\n")
HOOKED = NftTable(name=GUARD, text="chain a { type filter hook input priority 0; policy accept; }\n")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that nft was given."""
    asked: list[str] = []

    def run(argv: list[str], *, stdin: str) -> str:
        asked.append(stdin)
        return f"table {GUARD} {{\n\tchain a {{\n\t\t{len(asked)}\n\t}}\n}}\n"
    monkeypatch.setattr(module, "run", run)
    return asked


def test_a_text_is_loaded_once(tmp_path: Path, loads: list[str]) -> None:
    texts = Texts(tmp_path)
    first = texts.listing_of(NEW)
    assert texts.remember(NEW) == first and len(loads) == 1
    assert texts.listing_of(OLD) != first and len(loads) == 2


def test_what_was_seen_on_the_host_is_not_loaded_at_all(tmp_path: Path, loads: list[str]) -> None:
    listing = Texts(tmp_path).remember(NEW)
    later = Texts(tmp_path)
    assert later.text_of(GUARD, listing) == NEW.text and later.listing_of(NEW) == listing and len(loads) == 1
    assert later.text_of(GUARD, "another hand's") == "another hand's" and later.listing_of(OLD) != listing and len(loads) == 2


def test_a_difference_is_told_in_our_words_or_in_those_of_nft(paths: Paths, loads: list[str]) -> None:
    """nft is asked only where another hand has changed the table."""
    seen = NftablesDriver(paths)
    before = NftTable(name=GUARD, text=f"{HEAD}one\nset s {{ type mark; }}\n{OLD.text}{DAMAGED}")
    after = NftTable(name=GUARD, text=f"{HEAD}two\n{OLD.text}set t {{ type mark; }}\n")
    assert seen.table_diff(before, after) == (f"-{SETS_CHANGED}", "-set s { type mark; }", "+set t { type mark; }") and not loads
    assert seen.table_diff(replace(after, text=f"{after.text}{DAMAGED}"), after) == (f"-{SETS_CHANGED}",), "nothing else differs"
    assert seen.table_diff(NftTable(name=GUARD, text="\tchain a {\n\t\tcounter\n\t}\n"), after) == ("-\t\t1", "+\t\t2") and len(loads) == 2


def test_the_memory_of_a_table_whose_rules_change_in_place_stays_where_it_is() -> None:
    standing = Standing(tables={GUARD: OLD})
    assert not touches_memory(Update(OLD, NEW), standing)
    assert touches_memory(Update(OLD, HOOKED), standing)
