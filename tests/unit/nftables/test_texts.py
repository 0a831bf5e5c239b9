"""What nft prints for a text is asked once by a command, and what the kernel filled is read only where it would be lost."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.drivers.nftables import texts as module
from kvmnet.drivers.nftables.driver import touches_memory
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.nftables.standing import Standing
from kvmnet.drivers.nftables.tables import GUARD
from kvmnet.drivers.nftables.texts import Texts
from kvmnet.engine.plan import Update

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


def test_the_memory_of_a_table_whose_rules_change_in_place_stays_where_it_is() -> None:
    standing = Standing(tables={GUARD: OLD})
    assert not touches_memory(Update(OLD, NEW), standing)
    assert touches_memory(Update(OLD, HOOKED), standing)
