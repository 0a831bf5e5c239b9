"""Files of a capture: blocks as the format has them, and bounds that hold."""
from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvmnet.capture import pcapng
from kvmnet.capture.files import Files
from kvmnet.capture.kept import Kept
from kvmnet.capture.pcapng import Interface, blocks
from kvmnet.errors import ConflictError, HostCannot

HEAD = pcapng.header([Interface("kvt-a-0", "sent by a/nic0", "tcp"), Interface("eth0", "wire")], "kvmnet", "Linux", 128, "a comment")


def test_blocks_and_what_is_in_them() -> None:
    data = HEAD + pcapng.packet(1, 5_000_000_007, 100, b"x" * 61, outgoing=True) + pcapng.statistics(1, 1, 2 ** 40, 9, 2)
    found = blocks(data)
    assert [kind for kind, _ in found] == [pcapng.SECTION, pcapng.INTERFACE, pcapng.INTERFACE, pcapng.PACKET, pcapng.STATISTICS]
    assert b"kvt-a-0" in found[1][1] and b"sent by a/nic0" in found[1][1] and b"a comment" in found[0][1]
    interface, high, low, kept, whole = struct.unpack_from("=5I", found[3][1])
    assert (interface, high << 32 | low, kept, whole, found[3][1][20:20 + kept]) == (1, 5_000_000_007, 61, 100, b"x" * 61)
    assert struct.unpack_from("=HHI", found[3][1], 20 + 64) == (2, 4, 2), "the packet went out"
    assert struct.pack("=HHQ", 5, 8, 2) in found[4][1], "two were lost"


@pytest.mark.parametrize("size", range(60, 66))
def test_every_length_is_padded(size: int) -> None:
    assert len(blocks(pcapng.packet(0, 0, size, bytes(size), outgoing=False) * 3)) == 3


def test_half_a_block_is_seen() -> None:
    with pytest.raises(ValueError, match="half a block"):
        blocks(HEAD[:-4])


def test_one_file_is_for_its_owner_and_never_over_another(tmp_path: Path) -> None:
    file = tmp_path / "a.pcapng"
    made = Files(file, 1000, 1, HEAD)
    made.write(b"1234")
    made.close()
    assert file.read_bytes() == HEAD + b"1234" and file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConflictError, match="exists already"):
        Files(file, 1000, 1, HEAD)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConflictError):
        Files(tmp_path / "link", 1000, 1, HEAD)
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(HostCannot, match="cannot be written"):
        Files(tmp_path / "nowhere" / "a", 1000, 1, HEAD)


def test_rotation_keeps_the_newest_whole_files(tmp_path: Path) -> None:
    made = Files(tmp_path / "a.pcapng", 1000, 2, HEAD)
    for _ in range(4):
        made.rotate(pcapng.statistics(0, 1, 2, 3, 0))
    made.close()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a-00004.pcapng", "a-00005.pcapng"]
    assert [kind for kind, _ in blocks((tmp_path / "a-00004.pcapng").read_bytes())][-1] == pcapng.STATISTICS
    assert made.total == 5 * len(HEAD) + 4 * len(pcapng.statistics(0, 1, 2, 3, 0))


def test_a_full_disk_leaves_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Files(tmp_path / "a.pcapng", 1000, 1, HEAD)
    import os
    write = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) < 50:
            raise OSError(28, "No space left on device")
        return write(fd, data[:50])
    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        made.write(pcapng.packet(0, 0, 60, bytes(60), outgoing=False))
    monkeypatch.undo()
    assert (tmp_path / "a.pcapng").read_bytes() == HEAD
    made.write(last := pcapng.statistics(0, 1, 2, 3, 0))
    made.close()
    assert (tmp_path / "a.pcapng").read_bytes() == HEAD + last, "no hole"


def test_a_record_goes_on_behind_what_is_there_and_removes_its_own_alone(tmp_path: Path) -> None:
    ours = pcapng.header([pcapng.Interface("kvm-web", "copies")], "kvmnet", "Linux", 64, f"{Kept.MARK} web")
    for name in ("web-00002.pcapng", "web-00003.pcapng", "web-100000.pcapng", "other-00009.pcapng"):
        (tmp_path / name).write_bytes(ours)
    (tmp_path / "web-00001.pcapng").write_bytes(HEAD)
    (tmp_path / "web-00004.pcapng").symlink_to(tmp_path / "other-00009.pcapng")
    made = Kept(tmp_path / "web.pcapng", 1000, 2, ours)
    there = {"web-00001.pcapng", "web-00004.pcapng", "other-00009.pcapng"}
    assert {f.name for f in tmp_path.iterdir()} == there | {"web-100000.pcapng", "web-100001.pcapng"}
    made.rotate(b"")
    made.close()
    assert {f.name for f in tmp_path.iterdir()} == there | {"web-100001.pcapng", "web-100002.pcapng"}
    assert list(pcapng.packets(ours + (one := pcapng.packet(0, 7, 60, bytes(50))))) == [(7, 60, bytes(50))]
    assert pcapng.whole(ours + one[:-1]) == ours and pcapng.whole(ours + one) == ours + one
