"""Options of guests and uplinks written into a document's text, with everything else of it as it was. Pure.

The text is changed at the place that its nodes name, and read again: what is not then exactly the old data with the new values is not written.
"""
from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import yaml

from kvmnet.errors import KvmnetError
from kvmnet.spec import tree
from kvmnet.spec.load import loads

STEP = re.compile(r"([^.\[\]]+)|\[([0-9]+)\]")


def with_options(text: str, found: Mapping[str, str], source: str = "") -> str:
    """*text* with each path of *found* (``vms.web.nics[0].queues``) at its value as YAML. Raises KvmnetError where the text is written in a way
    that this does not understand, SpecError for a text that is no document."""
    loads(text, source)
    for path, value in found.items():
        steps = [name or int(number) for name, number in STEP.findall(path)]
        after = changed(text, steps, value)
        if after is None or read(after) != changed_data(text, steps, value):
            raise KvmnetError(f"{path} is written in a way that is not understood well enough to change it", f"write yourself: {path}: {value}")
        text = after
    loads(text, source)
    return text


def read(text: str) -> Any:
    try:
        return tree.read(text)[0]
    except tree.Unreadable:
        return None


def changed_data(text: str, steps: list[str | int], value: str) -> Any:
    """What the document is to be; steps that ``changed`` has found."""
    data: Any = copy.deepcopy(tree.read(text)[0])
    top = data
    for step in steps[:-1]:
        data = data[step] if isinstance(step, int) else data.setdefault(step, {})
    data[steps[-1]] = tree.read(f"v: {value}")[0]["v"]
    return top


def changed(text: str, steps: list[str | int], value: str) -> str | None:
    """The text with *value* at *steps*; None where that place cannot be made."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    rest = list(steps)
    while rest and (below := child(node, rest[0])) is not None:
        node = below
        rest.pop(0)
    start, end = node.start_mark.index, node.end_mark.index
    if not rest:
        return f"{text[:start]}{value}{text[end:]}" if isinstance(node, yaml.ScalarNode) or node.flow_style else None
    if not isinstance(node, yaml.MappingNode) or not node.value or any(isinstance(step, int) for step in rest):
        return None
    inner = value
    for step in reversed(rest[1:]):
        inner = f"{{{step}: {inner}}}"
    if node.flow_style:
        return f"{text[:end - 1].rstrip()}, {rest[0]}: {inner}}}{text[end:]}"
    first = node.value[0][0].start_mark
    return f"{text[:first.index]}{rest[0]}: {inner}\n{' ' * first.column}{text[first.index:]}"


def child(node: Any, step: str | int) -> Any:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
        return node.value[step] if step < len(node.value) else None
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    return None
