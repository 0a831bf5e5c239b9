"""What nft prints for the texts of tables.

nft rewrites what it loads, so a table's text cannot be compared with its listing. What nft prints for a
text is therefore remembered beside it (``Texts``): of a table that was loaded whole at the next look, if the kernel
has counted no transaction but ours since, else from an empty namespace, by the same kernel and the same nft. On the host a
listing that is known *is* its text; one that is not known has been changed by another hand, and stands for itself.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from kvmnet.drivers.nftables.inplace import blocks
from kvmnet.drivers.nftables.look import write_whole
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.nftables.tables import EGRESS, FILLED
from kvmnet.drivers.nftables.wire import canonical, read_tables, table_lines, take_hooks
from kvmnet.host.run import ToolFailed, run
from kvmnet.policy.flows import HEAD
from kvmnet.records import dataclass, field

TEXTS_KEPT = 20
DAMAGED = "# sets changed\n"
"""Behind the text of a table whose sets do not hold what was loaded."""
SETS_CHANGED = "# elements of its sets, as another hand has changed them"
"""The same for people."""


@dataclass(slots=True)
class Texts:
    """What nft prints for each text that was ever loaded, as files under ``guard/texts``."""

    folder: Path
    listings: dict[tuple[str, str], str] = field(default_factory=dict)
    """(table, text) -> listing, as far as this process has met it."""

    def text_of(self, name: str, listing: str) -> str:
        """The text that was loaded, if *listing* is known, else the listing itself."""
        try:
            text = str(json.loads(self.file(name, listing).read_text())["text"])
        except (OSError, ValueError, KeyError):
            return listing
        self.listings[name, text] = listing
        return text

    def listing_of(self, table: NftTable) -> str:
        """What nft prints for *table*; loads it in an empty namespace, once. Raises ToolFailed."""
        known = table.name, table.text or ""
        if (listing := self.listings.get(known)) is None:
            if len(self.listings) > TEXTS_KEPT:
                self.listings.clear()
            self.listings[known] = listing = self.loaded(table)
        return listing

    def meet(self, table: NftTable, body: str) -> None:
        """Have the text of *table* known by what nft printed of it where it was loaded."""
        self.listings[table.name, table.text or ""] = canonical(take_hooks(table.name, body)[0] if table.name == EGRESS else body)

    def difference(self, before: NftTable, after: NftTable) -> tuple[str, ...]:
        """Lines that go (``-``) and come (``+``) when *before* becomes *after*: of their texts, or of what nft makes of these where another
        hand has changed the table.

        Raises ToolFailed when nft is asked and refuses the text of *after*.
        """
        from difflib import unified_diff
        sides = [written(before), written(after)]
        if None in sides:
            try:
                old = self.listing_of(before)
            except ToolFailed:
                old = canonical(before.text or "")
            sides = [old.splitlines(), self.listing_of(after).splitlines()]
        lines = unified_diff(sides[0] or (), sides[1] or (), lineterm="", n=0)
        told = tuple(line for line in lines if not line.startswith(("---", "+++", "@@")))
        return (f"-{SETS_CHANGED}", *told) if (before.text or "").endswith(DAMAGED) else told

    def loaded(self, table: NftTable) -> str:
        """What nft prints for *table* in an empty namespace."""
        script = f"nft -f - && nft -s {' '.join(terse(table.name))} list table {table.name}"
        out = run(["unshare", "-n", "sh", "-c", script], stdin="\n".join(table_lines(table)) + "\n")
        return canonical(read_tables(out)[table.name])

    def remember(self, table: NftTable) -> str:
        listing = self.listing_of(table)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self.file(table.name, listing), json.dumps({"table": table.name, "text": table.text}))
        self.forget_oldest()
        return listing

    def forget_oldest(self) -> None:
        """Keep the newest texts. Another table's text may be written at the same time."""
        ages = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):
                ages.append((file.stat().st_mtime, file))
        for _, file in sorted(ages)[:-TEXTS_KEPT]:
            file.unlink(missing_ok=True)

    def file(self, name: str, listing: str) -> Path:
        return self.folder / sha256(f"{name}\n{listing}".encode()).hexdigest()[:32]


def terse(name: str) -> Sequence[str]:
    """The guard's elements are resources of their own; other tables' belong to their text."""
    return ("-t",) if name in FILLED else ()


def written(table: NftTable) -> list[str] | None:
    """The lines of a text as we write them, without what is said to ourselves; None for one of another hand."""
    text = (table.text or "").removesuffix(DAMAGED)
    return None if blocks(text) is None else [line for line in text.splitlines() if not line.startswith(HEAD)]
