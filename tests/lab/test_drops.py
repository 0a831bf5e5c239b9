"""The kernel's own reason for a drop, as Debian's kernel prints it."""
from __future__ import annotations

import pytest

from lib.drops import dropped_and_passed
from lib.lab import Lab

pytestmark = pytest.mark.lab


def test_the_reason_of_a_drop_is_read(lab: Lab) -> None:
    dropped, passed, impossible = lab.call(dropped_and_passed, timeout=120)
    assert impossible == "" and [d.reason for d in dropped] == ["XFRM_POLICY"]
    assert "XFRM_POLICY" not in [d.reason for d in passed]
