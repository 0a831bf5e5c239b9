"""What a command that makes a small change has loaded: each of these costs milliseconds at each start, and it has no use for them."""
from __future__ import annotations

import subprocess
import sys

LOAD = """
import kvmnet.cli.main, kvmnet.cli.change, kvmnet.api, kvmnet.spec.checks
from kvmnet.compile import compile_spec
from kvmnet.facts.model import Facts
from kvmnet.spec.allocate import allocate
from kvmnet.spec.load import loads
import sys
document = loads("version: 1\\nnetworks: {lan: {mode: isolated, subnet: 10.0.0.0/24}}\\nvms: {a: {nics: [{network: lan}]}}")
kvmnet.spec.checks.require(document, Facts())
compile_spec(document.spec, Facts(), allocate(document.spec, {}))
print(*sorted(UNUSED & sys.modules.keys()))
"""
UNUSED = {"asyncio", "ctypes", "difflib", "email", "kvmnet.bench", "kvmnet.bpf.language", "kvmnet.check.prove", "kvmnet.doctor", "kvmnet.policy.mirrors", "kvmnet.spec.docs",
          "kvmnet.spec.explain", "logging", "rich", "ssl", "tempfile", "traceback"}


def test_nothing_is_loaded_that_is_not_used() -> None:
    code = f"UNUSED = {UNUSED!r}\n{LOAD}"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == ""
