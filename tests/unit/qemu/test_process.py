"""Whom a QEMU runs as."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kvmnet.drivers.qemu import process
from kvmnet.drivers.qemu.process import OWN_USERS, Account, account, apart


def test_each_guest_has_a_user_of_its_own() -> None:
    nobody = account("nobody")
    one, two = (apart(nobody, Path("/run/kvmnet/vm", name)) for name in ("one", "two"))
    assert one.uid in OWN_USERS and one.uid == one.gid and one.groups == nobody.groups
    assert one.uid != two.uid and apart(nobody, Path("/run/kvmnet/vm/one")) == one
    named = Account("root", 0, 0, ())
    assert apart(named, Path("/run/kvmnet/vm/one")) == named, "what the document names is left"


def test_nobody_stays_where_there_are_few_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "mapped", lambda which, number: False)
    assert apart(account("nobody"), Path("/run/kvmnet/vm/one")) == account("nobody")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become others")
def test_a_guest_that_took_its_qemu_over_cannot_write_the_memory_of_another() -> None:
    nobody = account("nobody")
    one, two = (apart(nobody, Path("/run/kvmnet/vm", name)) for name in ("one", "two"))

    def writes(who: Account, victim: Account) -> bool:
        with subprocess.Popen(["sleep", "60"], user=victim.uid, group=victim.gid, extra_groups=[]) as other:
            try:
                done = subprocess.run(["sh", "-c", f"exec 3<>/proc/{other.pid}/mem"], user=who.uid, group=who.gid,
                                      extra_groups=[], check=False, capture_output=True)
                return done.returncode == 0
            finally:
                other.kill()

    assert writes(nobody, nobody), "one user for all"
    assert not writes(one, two)
