"""Settings written into a document's text, with everything else of it as it was. Pure."""
from __future__ import annotations

import re
from collections.abc import Mapping

from kvmnet.errors import KvmnetError
from kvmnet.spec.load import loads

PART = re.compile(r"tuning:\s*(#.*)?$")


def with_tuning(text: str, found: Mapping[str, str], remarks: Mapping[str, str], source: str = "") -> str:
    """*text* with the settings *found* in its part ``tuning:``, each below its remark. Raises KvmnetError where the part is written in a way
    that this does not understand, SpecError for a text that is no document."""
    before = loads(text, source).spec
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if PART.match(line)), None)
    if start is None:
        if before.tuning:
            raise not_understood(found)
        lines += ["", "tuning:"]
        start = len(lines) - 1
    indent = re.match(r" *", next((x for x in lines[start + 1:] if x.strip() and not x.lstrip().startswith("#")), "  "))
    space = (indent.group() if indent else "") or "  "
    fresh = []
    for name, value in found.items():
        place = next((n for n in range(start + 1, len(lines)) if re.match(rf"{space}['\"]?{re.escape(name)}['\"]?:", lines[n])), None)
        if place is not None:
            lines[place] = f"{space}{name}: {value}"
        else:
            fresh += [*([f"{space}# {remarks[name]}"] if name in remarks else []), f"{space}{name}: {value}"]
    lines[start + 1:start + 1] = fresh
    after = "\n".join(lines) + "\n"
    wanted = before.model_copy(update={"tuning": {**before.tuning, **found}})
    if loads(after, source).spec != wanted:
        raise not_understood(found)
    return after


def not_understood(found: Mapping[str, str]) -> KvmnetError:
    return KvmnetError("the document's part tuning: is written in a way that is not understood well enough to change it",
                       f"write yourself: {', '.join(f'{k}: {v}' for k, v in found.items())}")
