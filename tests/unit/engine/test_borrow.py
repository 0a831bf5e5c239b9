"""Lending and giving back, setting by setting."""
from __future__ import annotations

from kvmnet.drivers.linux.resources import Address, Link
from kvmnet.engine.borrow import Original, Originals, release, remaining, remember
from kvmnet.engine.plan import Create, Delete, Update
from kvmnet.engine.resource import Absent, Key

ETH0 = Link(name="eth0", type="physical", mtu=1500, master="", up=True)
IP = Address(name="eth0 192.0.2.5/24", dev="eth0")
LENT: Originals = {ETH0.key: Original(Link(name="eth0", mtu=1500, master=""))}


def test_the_first_value_wins_field_by_field() -> None:
    seen = {ETH0.key: ETH0}
    known = remember({}, seen, [Update(ETH0, Link(name="eth0", mtu=1400))], set(), {ETH0.key})
    assert known == {ETH0.key: Original(Link(name="eth0", mtu=1500))}
    now = Link(name="eth0", type="physical", mtu=1400, master="", up=True)
    known = remember(known, {ETH0.key: now}, [Update(now, Link(name="eth0", mtu=9000, master="kvb-a"))],
                     set(), {ETH0.key})
    assert known == LENT


def test_what_is_ours_is_not_remembered() -> None:
    steps = [Update(ETH0, Link(name="eth0", mtu=1400)), Delete(ETH0), Create(ETH0)]
    assert remember({}, {ETH0.key: ETH0}, steps, {ETH0.key}, set()) == {}


def test_what_we_delete_is_remembered_whole_with_what_goes_along() -> None:
    seen = {ETH0.key: ETH0, IP.key: IP}
    assert remember({}, seen, [Delete(ETH0, (IP.key,))], set(), set()) == {
        ETH0.key: Original(ETH0, whole=True), IP.key: Original(IP, whole=True)}


def test_a_setting_changed_and_then_deleted_comes_back_with_its_first_value() -> None:
    now = Link(name="eth0", type="physical", mtu=1400, master="kvb-a", up=True)
    assert remember(LENT, {ETH0.key: now}, [Delete(now)], set(), set()) == {ETH0.key: Original(ETH0, whole=True)}


def test_release_gives_back_what_is_no_longer_claimed() -> None:
    now = Link(name="eth0", type="physical", mtu=1400, master="kvb-a", up=True)
    claim = {ETH0.key: Link(name="eth0", mtu=1400)}
    freed = release(LENT, claim, {ETH0.key: now})
    assert freed.wanted == {ETH0.key: Link(name="eth0", mtu=1400, master="")}
    assert freed.borrowed == {ETH0.key}
    assert remaining(LENT, claim) == {ETH0.key: Original(Link(name="eth0", mtu=1500))}
    assert release(LENT, {}, {ETH0.key: now}).wanted == {ETH0.key: Link(name="eth0", mtu=1500, master="")}
    assert remaining(LENT, {}) == {}


def test_an_object_that_vanished_cannot_be_given_its_settings() -> None:
    freed = release(LENT, {}, {})
    assert freed.wanted == {} and freed.gone == (ETH0.key,)


def test_a_deleted_object_comes_back_unless_somebody_made_it_again() -> None:
    lent = {IP.key: Original(IP, whole=True)}
    assert release(lent, {}, {ETH0.key: ETH0}).wanted == {IP.key: IP}
    assert release(lent, {}, {ETH0.key: ETH0, IP.key: IP}).wanted == {}
    assert release(lent, {IP.key: Absent(IP.key)}, {ETH0.key: ETH0}).wanted == {IP.key: Absent(IP.key)}


def test_a_deleted_object_comes_back_in_the_place_of_what_we_made_there() -> None:
    lent = {IP.key: Original(IP, whole=True)}
    mine = Address(name=IP.name, dev="eth0", scope="link")
    assert release(lent, {}, {ETH0.key: ETH0, IP.key: mine}, {IP.key}).wanted == {IP.key: IP}


def test_an_address_whose_link_is_gone_stays_gone() -> None:
    freed = release({IP.key: Original(IP, whole=True)}, {}, {})
    assert freed.wanted == {} and freed.gone == (IP.key,)


def test_what_did_not_exist_is_removed_again() -> None:
    key = Key("address", "eth0 10.0.0.1/24")
    extra = Address(name=key.name, dev="eth0")
    known = remember({}, {ETH0.key: ETH0}, [Create(extra)], set(), {key})
    assert known == {key: Original(Absent(key))}
    assert release(known, {}, {ETH0.key: ETH0, key: extra}).wanted == {key: Absent(key)}


def test_what_was_taken_over_is_not_lent() -> None:
    """An adopted tap that had to be made again: destroy removes it, nothing of it is given back."""
    before, after = (Link(name="kvt-1", type="tap", user=uid, mac=mac) for uid, mac in ((-1, "02:00:00:00:00:01"), (0, None)))
    assert remember({}, {before.key: before}, (Delete(before), Create(after)), set(), set()) == {}
    assert before.key in remember({}, {before.key: before}, (Delete(before),), set(), set())
