"""Debian packages that a benchmark needs, unpacked and not installed: what they hold is seen in the benchmark's own mount
namespace alone."""
from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree

from bench.world import ROOT

KEPT = ROOT / ".cache"
LIBVIRT = ("libvirt-daemon", "libvirt-clients", "libvirt-daemon-config-nwfilter", "ebtables", "iptables")
OVS = ("openvswitch-switch",)
TOOLS = ("ebtables", "iptables", "ip6tables")
"""What Debian's alternatives would link to its -nft."""


def fetch(name: str, packages: Sequence[str]) -> Path:
    """The packages and what they need that is not installed, unpacked; their ``usr``."""
    kept = KEPT / name
    if not (kept / "whole").exists():
        rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="kvmnet-bench-") as cache:
            Path(cache, "archives/partial").mkdir(parents=True)
            options = [f"Dir::Cache={cache}", "APT::Sandbox::User=root", "APT::Install-Recommends=false"]
            run(["apt-get", "-qq", *(word for o in options for word in ("-o", o)), "-y", "--download-only", "install", *packages])
            for archive in Path(cache, "archives").glob("*.deb"):
                run(["dpkg-deb", "-x", str(archive), str(kept)])
        if (kept / "lib").exists():
            run(["cp", "-a", f"{kept}/lib/.", f"{kept}/usr/lib"])
        for tool in TOOLS:
            if (kept / f"usr/sbin/{tool}-nft").exists():
                (kept / "usr/sbin" / tool).symlink_to(f"{tool}-nft")
        (kept / "whole").touch()
    return kept / "usr"


def seen(usrs: Sequence[Path]) -> None:
    """From here on what was unpacked is under /usr. To be called in a mount namespace of its own."""
    run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={':'.join(map(str, usrs))}:/usr", "/usr"])


def inside(module: str, words: Sequence[str]) -> list[str]:
    """*module* with *words*, in a mount namespace of its own."""
    return ["unshare", "--mount", "--propagation", "private", "--", sys.executable, "-m", module, *words]


def run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
