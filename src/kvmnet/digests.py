"""Digests without OpenSSL: ``hashlib`` loads it (3 ms of each command) to offer what nobody here asks for."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import blake2b, blake2s, sha256
else:
    try:    # where hashlib takes them from itself
        from _blake2 import blake2b, blake2s
        try:
            from _sha2 import sha256
        except ImportError:    # before Python 3.12
            from _sha256 import sha256
    except ImportError:
        from hashlib import blake2b, blake2s, sha256

__all__ = ["blake2b", "blake2s", "sha256"]
