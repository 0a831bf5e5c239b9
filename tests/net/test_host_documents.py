"""Every example and golden document on this machine's kernel, where the doctor finds nothing then, and `why` nothing in the way of their guests."""
from __future__ import annotations

import pytest

from lib.documents import DOCUMENTS, ELSEWHERE, IN_LAB, live_through

pytestmark = pytest.mark.net


@pytest.mark.parametrize("name", sorted(DOCUMENTS.keys() - IN_LAB - ELSEWHERE))
def test_document(name: str) -> None:
    live_through(name)
