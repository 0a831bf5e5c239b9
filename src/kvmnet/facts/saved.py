"""A capture that was saved by ``kvmnet facts``, read again."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kvmnet.errors import KvmnetError
from kvmnet.facts.capture import FORMAT


def saved(path: Path) -> dict[str, Any]:
    """The capture in *path* (- for standard input). Raises KvmnetError when it is none, or newer than this kvmnet."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KvmnetError(f"{path}: {getattr(error, 'strerror', None) or 'not a text'}", "name a file that `kvmnet facts` wrote") from error
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KvmnetError(f"{path}: not JSON: {error}", "name a file that `kvmnet facts` wrote") from error
    if not isinstance(found, dict) or not isinstance(found.get("format"), int) or not isinstance(found.get("links"), list):
        raise KvmnetError(f"{path}: not a capture of a host", "make one with `kvmnet facts > host.json`")
    if found["format"] > FORMAT:
        raise KvmnetError(f"{path}: format {found['format']}, written by kvmnet {found.get('kvmnet')}; this one reads up to {FORMAT}", "use a newer kvmnet")
    return found
