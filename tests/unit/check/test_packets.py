"""Frames are built as RFCs say and read back; nothing that comes from a network can break the reader."""
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmnet.check import dhcp, echo, frames
from kvmnet.check.attacks import ATTACKS, Receiver, Sender
from kvmnet.check.frames import ARP, ICMP6, IP4, IP6, UDP, Packet

MAC, PEER = "02:00:00:00:00:01", "02:00:00:00:00:02"
SENDER = Sender(MAC, "10.0.0.1", "fd00::1", frames.link_local(MAC), "02:00:00:00:00:99", "10.0.0.99", "fd00::99")
RECEIVER = Receiver("peer", PEER, "10.0.0.2", "fd00::2", "10.0.0.254", "fd00::fe")


def packet(frame: bytes) -> Packet:
    found = frames.read(frame)
    assert found is not None
    return found


def test_checksums_of_rfc1071_and_of_an_echo() -> None:
    assert frames.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    four = frames.echo("10.0.0.1", "10.0.0.2", 7, b"odd")
    assert frames.checksum(four[:20]) == 0 and frames.checksum(four[20:]) == 0
    six = frames.echo("fd00::1", "fd00::2", 7, b"odd")
    assert frames.checksum(frames.pseudo("fd00::1", "fd00::2", ICMP6, len(six) - 40) + six[40:]) == 0


def test_an_echo_has_df_and_its_reply_goes_back() -> None:
    request = packet(frames.ether(PEER, MAC, IP4, frames.echo("10.0.0.1", "10.0.0.2", 7, b"nonce")))
    assert request.raw[20] & 0x40 and request.icmp == 8 and not request.fragment
    reply = packet(frames.ether(MAC, PEER, IP4, frames.echo_reply(request)))
    assert (reply.src, reply.dst, reply.icmp) == ("10.0.0.2", "10.0.0.1", 0)
    assert reply.body[4:] == request.body[4:]


def test_what_is_built_is_read_back() -> None:
    arp = packet(frames.ether(PEER, MAC, ARP, frames.arp(2, (MAC, "10.0.0.1"), (PEER, "10.0.0.2"))))
    assert (arp.protocol, arp.src, arp.dst, arp.body[8:14]) == (2, "10.0.0.1", "10.0.0.2", frames.mac(MAC))
    note = packet(frames.ether(PEER, MAC, IP6, frames.advertisement("fe80::1", "fe80::2", "fd00::1", MAC)))
    assert note.icmp == 136 and note.body[8:24] == frames.ip("fd00::1") and note.raw[21] == 255
    report = packet(frames.ether("33:33:00:00:00:16", MAC, IP6, frames.group_report("fe80::1", ["ff02::1:ff00:1"])))
    assert report.icmp == 143 and report.raw[20] == 0
    mail = packet(frames.ether(PEER, MAC, IP4, frames.ip4("10.0.0.1", "10.0.0.2", UDP,
                                                          frames.udp("10.0.0.1", "10.0.0.2", 68, 67, b"x"))))
    assert mail.ports == (68, 67)


def test_addresses_made_of_a_mac() -> None:
    assert frames.link_local("52:54:00:12:34:56") == "fe80::5054:ff:fe12:3456"
    assert frames.solicited_node("fd00::12:3456") == "ff02::1:ff12:3456"
    assert frames.multicast_mac("ff02::1:ff12:3456") == "33:33:ff:12:34:56"
    assert frames.multicast_mac("239.129.2.3") == "01:00:5e:01:02:03"


def test_a_fragment_is_told_from_a_whole_packet() -> None:
    whole = frames.echo("10.0.0.1", "10.0.0.2", 7, bytes(64))
    part = whole[:6] + b"\x20\0" + whole[8:]
    assert packet(frames.ether(PEER, MAC, IP4, part)).fragment and packet(frames.ether(PEER, MAC, IP4, part)).icmp == -1
    six = frames.ip6("fd00::1", "fd00::2", 44, bytes(24))
    assert packet(frames.ether(PEER, MAC, IP6, six)).fragment


def test_every_attack_goes_to_its_receiver_alone_and_carries_its_mark() -> None:
    for name, attack in ATTACKS.items():
        for make in (attack.forbidden, attack.allowed):
            shot = make(SENDER, RECEIVER)
            assert shot is not None, name
            assert shot.frame[:6] == frames.mac(PEER) and shot.mark in shot.frame, name
        forbidden, allowed = attack.forbidden(SENDER, RECEIVER), attack.allowed(SENDER, RECEIVER)
        assert forbidden and allowed and forbidden.mark not in allowed.frame and allowed.mark not in forbidden.frame
        own = frames.mac(MAC)
        assert allowed.frame[6:12] == own and (forbidden.frame[6:12] == own) == (name != "spoofed-mac")


def test_router_messages_of_an_attack_change_nothing() -> None:
    for name in ("rogue-ra", "hidden-ra"):
        shot = ATTACKS[name].forbidden(SENDER, RECEIVER)
        assert shot
        at = shot.frame.index(b"\x86", 54)
        assert shot.frame[at + 6:at + 8] == b"\0\0"    # lifetime as a router
        assert b"\x03\x04" not in shot.frame[at + 16:]    # no prefix


WIRE = st.one_of(st.binary(max_size=200), st.builds(
    lambda kind, rest: bytes(12) + kind + rest,
    st.sampled_from([b"\x08\0", b"\x86\xdd", b"\x08\x06"]),
    st.one_of(st.binary(max_size=120), st.builds(lambda t, r: b"\x45" + bytes(8) + t + r, st.binary(min_size=1, max_size=1),
                                                 st.binary(max_size=100)),
              st.builds(lambda n, r: b"\x60" + bytes(5) + n + r, st.binary(min_size=1, max_size=1),
                        st.binary(min_size=33, max_size=120)))))


@given(WIRE)
def test_no_frame_breaks_the_reader(frame: bytes) -> None:
    found = frames.read(frame)
    if found is not None:
        assert found.raw == frame and isinstance(found.icmp, int) and len(found.ports) == 2
        echo.answered_port(found, "10.0.0.1", 5)
        dhcp.kind_of(found)
        if found.icmp in (1, 2, 3, 11):
            assert echo.error_words(found)


@given(st.binary(max_size=120))
def test_no_answer_breaks_the_readers_of_dns_and_dhcp(data: bytes) -> None:
    assert isinstance(echo.read_dns(data), echo.Resolved)
    assert isinstance(dhcp.options4(bytes(236) + dhcp.COOKIE + data), dict)
    assert isinstance(dhcp.read_lease4(bytes(236) + dhcp.COOKIE + data), dhcp.Lease4)
    assert isinstance(dhcp.read_lease6(data), dhcp.Lease6)
    body = bytes(16) + data
    assert dhcp.read_router(Packet(b"", "", "", IP6, "fe80::1", "", ICMP6, body)).address == "fe80::1"


def test_answers_are_read() -> None:
    name = echo.dns_name("web1.lan")
    message = (b"\0\1\x81\x80\0\1\0\1\0\0\0\0" + name + b"\0\1\0\1" + b"\xc0\x0c\0\1\0\1\0\0\0\x0a\0\4\x0a\1\0\2")
    assert echo.read_dns(message) == echo.Resolved(("10.1.0.2",))
    assert echo.read_dns(b"\0\1\x81\x83" + message[4:6] + bytes(6) + name + bytes(4)).error == "no such name"
    lease = dhcp.read_lease4(bytes(16) + frames.ip("10.1.0.9") + bytes(216) + dhcp.COOKIE
                             + b"\x35\1\5\x36\4\x0a\1\0\1\x03\4\x0a\1\0\1\x1a\2\x05\xdc\xff")
    assert (lease.address, lease.server, lease.router, lease.mtu) == ("10.1.0.9", "10.1.0.1", "10.1.0.1", 1500)
