"""Uplinks of two ways: what is refused before anything is made, and what their far ends are."""
from __future__ import annotations

import pytest

from kvmnet.bench import sitting
from kvmnet.bench.matrix import MOST, WAYS, Seat, configuration
from kvmnet.bench.plots import LETTERS, label
from kvmnet.bench.record import Wish
from kvmnet.bench.scenarios import SCENARIOS, Place, chosen
from kvmnet.bench.sitting import check
from kvmnet.bench.twoways import CARRIED, FAR, WINDOW, ends, far_lines, near_lines
from kvmnet.errors import HostCannot, KvmnetError


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the host lacks: nothing, until a test says so."""
    lacks = {"bond": ""}
    monkeypatch.setattr(sitting, "features", lambda cache: lacks)
    return lacks


def wish(text: str, *names: str, place: Place = Place.OUTSIDE) -> Wish:
    return Wish((configuration(text),), names, (place,), 1)


@pytest.mark.parametrize(("text", "said"), [
    ("", "failover needs an uplink of two ways"), ("uplink=nic", "failover needs an uplink of two ways"),
    ("uplink=rstp", "RSTP is for networks of mode bridge"), ("uplink=active-backup mode=isolated", "an uplink of two ways is one of kvmnet's"),
    ("uplink=active-backup by=bare", "an uplink of two ways is one of kvmnet's"),
])
def test_what_cannot_lose_a_way_is_refused(text: str, said: str) -> None:
    with pytest.raises(KvmnetError, match=said):
        check(wish(text, "failover"))


def test_what_can_is_taken_where_the_kernel_has_it(kernel: dict[str, str]) -> None:
    for text in ("uplink=rstp mode=bridge", "uplink=active-backup", "uplink=active-backup mode=macvtap"):
        check(wish(text, "failover"))
    with pytest.raises(KvmnetError, match="failover is measured guest-outside only"):
        check(wish("uplink=active-backup", "failover", place=Place.HOST))
    kernel["bond"] = "this kernel has no bonding"
    check(wish("uplink=rstp mode=bridge", "failover"))
    with pytest.raises(HostCannot, match="no bonding"):
        check(wish("uplink=active-backup", "tcp-up"))


def test_all_loads_are_those_that_need_no_second_way() -> None:
    assert set(SCENARIOS) - set(chosen(["all"])) == {"failover"} == set(chosen(["failover"]))
    check(wish("", *chosen(["all"]), place=Place.HOST))


def test_a_gap_that_nothing_ended_is_no_result() -> None:
    asked = SCENARIOS["failover"]
    assert asked.whole({"over": False, "seconds": 5.0, "after": 1.0}) == "nothing took over within 4.0 s"
    assert asked.whole({"over": True}) == ""
    assert WINDOW / (int(asked.options["us"]) * 1e-6) > CARRIED, "the load is more than what counts as one"


def test_what_a_bond_leads_to() -> None:
    backup = Seat(3, configuration("uplink=active-backup"))
    assert ends(backup) == ("out3", "out3b") and ends(Seat(3, configuration(""))) == ("out3",)
    assert [line for line in far_lines(backup) if "master" in line] == [f"link set {end} master way3" for end in ends(backup)]
    assert set(FAR) | {"rstp"} == set(WAYS)
    for way in sorted(FAR):
        first, *_ = lines = far_lines(Seat(3, configuration(f"uplink={way}")))
        assert f"mode {way} " in f"{first} " or (way == "active-backup" and first.endswith("type bridge"))
        assert all(lines.index(f"link set {end} master way3") < lines.index(f"link set {end} up") for end in ends(backup)), "a bond takes what is down"


def test_no_member_has_the_index_of_its_other_end() -> None:
    """The kernel would be slow to tell of the loss of one, and of two equals one would be slower."""
    seats = [Seat(n, configuration("uplink=rstp mode=bridge")) for n in range(MOST)]
    given = [int(line.split()[line.split().index("index") + 1]) for seat in seats for line in near_lines(seat, "there")]
    assert len(set(given)) == 2 * MOST and min(given) > 2 * MOST + 100
    plain, = near_lines(Seat(0, configuration("")), "there")
    assert plain == "link add up0 mtu 1500 type veth peer name out0 mtu 1500 netns there"


def test_the_page_has_room_for_their_names() -> None:
    """A name of 34 letters was cut off at its beginning on the page of this load."""
    name = "memory=192 uplink=rstp mode=bridge"
    drawn = label(20.0, name)
    lines = [part.partition("<")[0] for part in drawn.split(">")[1::2]]
    assert " ".join(line for line in lines if line) == name and all(len(line) <= LETTERS + 2 for line in lines)
    assert "…" in label(20.0, f"{name} model=e1000 cpus=2 queues=2 mtu=9000") and "…" not in drawn
