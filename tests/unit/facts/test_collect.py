"""Facts read from files that stand in for the host's own."""
from __future__ import annotations

from pathlib import Path

from kvmnet.facts.collect import dhcp_clients, limits, nameservers, resolvers, uids
from kvmnet.facts.features import PROBES, probed, reason_of


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_nameservers_are_read_once_each_and_a_missing_file_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "resolv.conf", "# x\nsearch lan\nnameserver 10.0.0.1\nnameserver ::1\nnameserver 10.0.0.1\n")
    assert nameservers(path) == ("10.0.0.1", "::1")
    assert nameservers(tmp_path / "none") == ()


def test_a_local_stub_is_replaced_by_what_is_behind_it(tmp_path: Path) -> None:
    stub = write(tmp_path / "stub", "nameserver 127.0.0.53\n")
    behind = write(tmp_path / "real", "nameserver 192.0.2.53\n")
    assert resolvers(stub, behind) == ("192.0.2.53",)
    assert resolvers(stub, tmp_path / "none") == ("127.0.0.53",)
    assert resolvers(behind, stub) == ("192.0.2.53",)


def test_limits_that_are_not_shown_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "net/netfilter/nf_conntrack_max", "4096\n")
    assert limits(tmp_path) == {"nf_conntrack_max": 4096}


def test_dhcp_clients_are_found_by_their_command_line(tmp_path: Path) -> None:
    for pid, words in {"10": ("/sbin/dhclient", "-4", "eth0"), "11": ("NetworkManager", "--no-daemon"),
                       "12": ("bash", "eth0"), "13": ("/bin/busybox", "udhcpc", "-i", "eth1", "-b")}.items():
        write(tmp_path / pid / "cmdline", "\0".join(words) + "\0")
    write(tmp_path / "self" / "cmdline", "dhclient\0eth2\0")
    assert dhcp_clients(["eth0", "eth1", "eth2"], tmp_path) == {
        "eth0": "dhclient, pid 10", "eth1": "udhcpc, pid 13", "": "NetworkManager, pid 11"}


def test_users_that_do_not_exist_are_left_out() -> None:
    assert uids(["root", "no-such-user-here"]) == {"root": 0}


def test_features_are_asked_once_and_again_for_another_kernel(tmp_path: Path) -> None:
    asked = []

    def ask() -> dict[str, str]:
        asked.append(1)
        return {"bridge": ""}

    cache = tmp_path / "run" / "features.json"
    assert probed(cache, "one", ask) == probed(cache, "one", ask) == {"bridge": ""}
    assert len(asked) == 1
    probed(cache, "two", ask)
    assert len(asked) == 2
    cache.write_text('{"identity": "two", "features": [1]}')
    assert probed(cache, "two", ask) == {"bridge": ""}
    assert len(asked) == 3


def test_what_cannot_be_tried_is_said_and_not_kept(tmp_path: Path) -> None:
    cache = tmp_path / "features.json"
    answers = probed(cache, "one", lambda: None)
    assert answers.keys() == PROBES.keys() and all("not root" in reason for reason in answers.values())
    assert not cache.exists()


def test_a_failed_probe_gives_a_reason_always() -> None:
    text = "nft Error: nothing of the sort\nport-locked x\nbridge\n"
    lines = dict(line.partition(" ")[::2] for line in text.splitlines())
    assert reason_of("bridge", lines, text) == ""
    assert reason_of("nft", lines, text) == "Error: nothing of the sort"
    assert "5.18" in reason_of("port-locked", lines, text)
    assert "said nothing" in reason_of("port", {"port": ""}, "port ")
