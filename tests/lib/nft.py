"""libnftables in this very process: in a lab, where a fork and an exec take a tenth of a second, rules are loaded and listed by it."""
from __future__ import annotations

import ctypes

JSON, HANDLES, TERSE = 1 << 4, 1 << 3, 1 << 11
"""Flags of nft_ctx_output_set_flags() (libnftables(3))."""


class Nft:
    """The rules of the network namespace that this thread is in."""

    def __init__(self) -> None:
        self.nft = ctypes.CDLL("libnftables.so.1")
        for name in ("nft_ctx_new", "nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(self.nft, name).restype = ctypes.c_char_p if "buffer" in name else ctypes.c_void_p
        self.context = ctypes.c_void_p(self.nft.nft_ctx_new(0))
        self.nft.nft_ctx_buffer_output(self.context)
        self.nft.nft_ctx_buffer_error(self.context)

    def refused(self, script: str) -> str:
        """Runs a script; why it was refused, '' when it was not."""
        code = self.nft.nft_run_cmd_from_buffer(self.context, script.encode())
        said: bytes = self.nft.nft_ctx_get_error_buffer(self.context)
        self.nft.nft_ctx_get_output_buffer(self.context)
        return said.decode() or f"code {code}" if code else ""

    def listed(self) -> tuple[str, str]:
        """All rules, as ``nft -j list ruleset`` and ``nft -a -t list ruleset`` print them."""
        return self.output(JSON | HANDLES), self.output(HANDLES | TERSE)

    def output(self, flags: int) -> str:
        self.nft.nft_ctx_output_set_flags(self.context, flags)
        code = self.nft.nft_run_cmd_from_buffer(self.context, b"list ruleset")
        said: bytes = self.nft.nft_ctx_get_output_buffer(self.context)
        self.nft.nft_ctx_output_set_flags(self.context, 0)
        assert code == 0, self.nft.nft_ctx_get_error_buffer(self.context)
        return said.decode()

    def close(self) -> None:
        self.nft.nft_ctx_free(self.context)
