"""The table of drivers. Adding one is a folder and a line here."""
from __future__ import annotations

from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver
from kvmnet.drivers.ethtool.driver import EthtoolDriver
from kvmnet.drivers.files.driver import FileDriver
from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.macvtap.driver import MacvtapDriver
from kvmnet.drivers.mirror.driver import MirrorDriver
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.qemu.guests import Guests
from kvmnet.drivers.qemu.threads import ThreadsDriver
from kvmnet.drivers.recorder.driver import RecorderDriver
from kvmnet.drivers.sriov.driver import SriovDriver
from kvmnet.drivers.stp.driver import StpDriver
from kvmnet.drivers.tc.driver import TcDriver
from kvmnet.drivers.wireguard.driver import WireguardDriver
from kvmnet.engine.driver import Driver
from kvmnet.host.paths import Paths


def drivers(paths: Paths) -> tuple[Driver, ...]:
    """Every driver of a host whose state lies in *paths*."""
    return (LinuxDriver(), EthtoolDriver(), TcDriver(), MacvtapDriver(paths), RecorderDriver(paths), MirrorDriver(), NftablesDriver(paths), StpDriver(paths), DnsmasqDriver(paths),
            SriovDriver(paths), WireguardDriver(paths), Guests(paths), ThreadsDriver(paths),
            FileDriver(paths))
