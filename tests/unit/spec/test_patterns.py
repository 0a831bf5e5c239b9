"""Expressions that are compiled when they are first asked: the same answers, and nothing is compiled before."""
from __future__ import annotations

import re
import subprocess
import sys

from kvmnet.spec.patterns import Later, compiled_later


def test_the_same_answers() -> None:
    for pattern, flags in ((r"(a+)b", 0), (r"^X$", re.IGNORECASE | re.MULTILINE)):
        later, now = Later(pattern, flags), re.compile(pattern, flags)
        for text in ("aab", "x\ny", ""):
            assert [str(later.match(text)), later.search(text) is None, later.findall(text), later.sub("-", text), later.split(text)] == [
                str(now.match(text)), now.search(text) is None, now.findall(text), now.sub("-", text), now.split(text)]
        assert (later.pattern, later.flags) == (now.pattern, now.flags)


def test_only_the_package_waits_and_only_while_it_is_imported() -> None:
    space: dict[str, object] = {"__name__": "some.module", "re": re}
    with compiled_later("some"):
        exec("made = re.compile('a')", space)
        assert isinstance(re.compile("a"), re.Pattern), "another thread may import something else"
    assert isinstance(space["made"], Later)
    exec("made = re.compile('a')", space)
    assert isinstance(space["made"], re.Pattern)


WHOLE = """
from kvmnet.spec.load import loads
from kvmnet.spec.patterns import Later
loads("version: 1")
import yaml
print(isinstance(yaml.reader.Reader.NON_PRINTABLE, Later), "match" in vars(yaml.reader.Reader.NON_PRINTABLE))
print(yaml.safe_load("[2024-01-02, 1.5, 0x1f, on, ~, a]"), yaml.safe_dump({"a": "1.5", "b": 1.5, "c": "on"}))
try: yaml.load("a\\x07", yaml.SafeLoader)
except yaml.reader.ReaderError as error: print(error.reason)
"""


def test_all_of_pyyaml_works_after_a_document_was_read() -> None:
    told = subprocess.run([sys.executable, "-c", WHOLE], capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == ["True False", "[datetime.date(2024, 1, 2), 1.5, 31, True, None, 'a'] a: '1.5'", "b: 1.5", "c: 'on'", "",
                    "special characters are not allowed"]
