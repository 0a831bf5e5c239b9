"""Examples that need a whole kernel, where the doctor finds nothing then, and `why` nothing in the way of their guests."""
from __future__ import annotations

import pytest

from lib.documents import IN_LAB, live_through

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("name", sorted(IN_LAB))
def test_document(name: str) -> None:
    live_through(name)
