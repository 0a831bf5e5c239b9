"""``kvmnet bench peers`` with libvirt and Open vSwitch, which are fetched by apt when this is asked for, unpacked and not installed.

    python -m bench.peers [WORDS for kvmnet bench peers...]
"""
from __future__ import annotations

import os
import sys
from pathlib import Path

from bench.unpacked import LIBVIRT, OVS, fetch, inside, seen

PRIVATE = ("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
"""What libvirt's packages would have made, empty; libvirt's own directories lie over them."""


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--fetch"]:
        fetch("libvirt", LIBVIRT)
        fetch("openvswitch", OVS)
    elif words[:1] == ["--inside"]:
        seen([fetch("libvirt", LIBVIRT), fetch("openvswitch", OVS)])
        for folder in PRIVATE:
            Path(folder).mkdir(parents=True, exist_ok=True)
        os.execv(sys.executable, [sys.executable, "-m", "kvmnet.cli.main", "bench", "peers", *words[1:]])
    else:
        argv = inside("bench.peers", ["--inside", *words])
        os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()
