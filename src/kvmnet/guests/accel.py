"""Which accelerator really runs a guest here.

``/dev/kvm`` may be there and open, and yet no guest get anywhere: nested virtualisation that is
half supported, or emulated a thousand times slower than a processor. So KVM is believed only when
a guest has reached long mode and has counted to twenty million before a deadline (a processor: 60
ms with QEMU's own start; TCG: 100 ms). The guest is 64 KiB of firmware, made here.
"""
from __future__ import annotations

import json
import os
import struct
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile

from kvmnet.drivers.qemu.arguments import CPU, PROGRAM, SANDBOX
from kvmnet.drivers.qemu.folder import replace
from kvmnet.drivers.qemu.process import KVM, account, finish, group_name, spawn
from kvmnet.host.paths import Paths
from kvmnet.host.process import boot_id
from kvmnet.records import dataclass

DEADLINE = 3.0
"""Seconds that the probe guest gets."""
EXIT_PORT, EXIT_VALUE = 0xF4, 0x10
REACHED_END = EXIT_VALUE << 1 | 1
"""Exit code of QEMU when the guest writes EXIT_VALUE to the port (hw/misc/debugexit.c)."""
SIZE, SEGMENT, GDT = 0x10000, 0xF0000, 0x800
COUNT = 20_000_000


@dataclass(frozen=True, slots=True)
class Accel:
    name: str
    """kvm or tcg."""
    reason: str
    """Why, for people: ``KVM does not run a guest here: ...; using TCG``."""


def probe(paths: Paths, user: str = "nobody", deadline: float = DEADLINE) -> Accel:
    """The fastest accelerator that runs a guest of *user*, tried once per boot and state of /dev/kvm.

    Takes at most *deadline* seconds. Raises HostCannot for an impossible user.
    """
    cache, condition = paths.run / "accel.json", circumstances(user)
    try:
        known = json.loads(cache.read_text())
        if known["circumstances"] == condition:
            return Accel(known["name"], known["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = try_kvm(user, deadline)
    cache.parent.mkdir(parents=True, exist_ok=True)
    replace(cache, json.dumps({"circumstances": condition, "name": found.name, "reason": found.reason}))
    return found


def circumstances(user: str) -> str:
    """What the answer depends on. It changes with a reboot and with the rights of the device."""
    try:
        device = KVM.stat()
        rights = f"{device.st_mode:o} {device.st_uid} {device.st_gid}"
    except OSError:
        rights = "absent"
    return f"{boot_id()} {user} {rights}"


def try_kvm(user: str, deadline: float) -> Accel:
    why = blocked(KVM, user) or failed("kvm", user, deadline)
    if why is None:
        return Accel("kvm", "KVM runs a guest here")
    return Accel("tcg", f"{why}; using TCG (software emulation)")


def blocked(device: Path, user: str) -> str | None:
    """Why *user* may not open the device, or None."""
    try:
        status = device.stat()
    except OSError as error:
        return f"there is no {device} ({error.strerror}: module kvm_intel or kvm_amd, or the firmware's switch)"
    who = account(user)
    mode = status.st_mode
    owner, group, others = mode & 0o600 == 0o600, mode & 0o060 == 0o060, mode & 0o006 == 0o006
    if others or (group and status.st_gid in (who.gid, *who.groups)) or (owner and status.st_uid == who.uid):
        return None
    return (f"user {user} may not open {device} (mode {mode & 0o777:04o}, group {group_name(status.st_gid)}): "
            f"chgrp kvm {device} and chmod 0660 {device} let it")


def failed(accel: str, user: str, deadline: float) -> str | None:
    """Why the probe guest did not come to its end under *accel*, or None when it did."""
    with ExitStack() as stack:
        firmware = stack.enter_context(TemporaryFile())
        firmware.write(probe_firmware())
        firmware.flush()
        os.fchmod(firmware.fileno(), 0o444)
        said = stack.enter_context(TemporaryFile())
        argv = [PROGRAM, "-no-user-config", "-nodefaults", "-display", "none", "-machine", "pc", "-accel", accel,
                "-cpu", CPU[accel], "-m", "16", "-sandbox", SANDBOX, "-bios", f"/proc/self/fd/{firmware.fileno()}",
                "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"]
        child = spawn(argv, account(user), [firmware.fileno()], said.fileno())
        code = finish(child, deadline)
        said.seek(0)
        words = said.read().decode(errors="replace").strip().splitlines()
    if code == REACHED_END:
        return None
    name = accel.upper()
    if code is None:
        return f"{name} does not run a guest here: the probe guest did not come to its end in {deadline:g} s"
    return f"{name} does not run a guest here: {words[-1] if words else f'QEMU ended with {code}'}"


def probe_firmware() -> bytes:
    """A firmware image that enters long mode, counts, and writes EXIT_VALUE to EXIT_PORT.

    Intel SDM volume 3A, 9.8.5 (initialising IA-32e mode). The image is mapped at 0xF0000; the
    processor starts in its last 16 bytes.
    """
    real = (b"\xfa"                                                       # cli
            b"\x2e\x66\x0f\x01\x16" + struct.pack("<H", GDT + 0x20) +     # lgdt cs:[gdt register]
            b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0"                           # cr0 |= protected mode
            b"\x66\xea" + struct.pack("<IH", SEGMENT + 0x100, 0x08))      # jmp 8:protected
    protected = (
        b"\x66\xb8\x10\x00\x8e\xd8"                                       # ds = flat data
        b"\xc7\x05" + struct.pack("<II", 0x1000, 0x2003) +                # page map -> pointers
        b"\xc7\x05" + struct.pack("<II", 0x2000, 0x3003) +                # pointers -> directory
        b"\xc7\x05" + struct.pack("<II", 0x3000, 0x0083) +                # directory: 2 MiB at 0
        b"\xbf" + struct.pack("<I", 0x1000) + b"\x0f\x22\xdf"             # cr3 = page map
        b"\x0f\x20\xe0\x0c\x20\x0f\x22\xe0"                               # cr4 |= PAE
        b"\xb9" + struct.pack("<I", 0xC0000080) +                         # EFER |= long mode
        b"\x0f\x32\x0d" + struct.pack("<I", 0x100) + b"\x0f\x30"
        b"\x0f\x20\xc0\x0d" + struct.pack("<I", 0x80000000) + b"\x0f\x22\xc0"    # cr0 |= paging
        b"\xea" + struct.pack("<IH", SEGMENT + 0x200, 0x18))              # jmp 18:long
    long = (b"\xb9" + struct.pack("<I", COUNT) + b"\xff\xc9\x75\xfc" +    # count down
            bytes((0xB0, EXIT_VALUE, 0xE6, EXIT_PORT, 0xF4)))             # out; hlt
    # "Accessed" is set already: the processor would write it, and the table is in read-only memory.
    table = struct.pack("<QQQQ", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF)
    register = struct.pack("<HI", len(table) - 1, SEGMENT + GDT)
    image = bytearray(b"\xf4" * SIZE)
    for offset, code in ((0, real), (0x100, protected), (0x200, long), (GDT, table + register),
                         (0xFFF0, b"\xea" + struct.pack("<HH", 0, 0xF000))):
        image[offset:offset + len(code)] = code
    return bytes(image)
