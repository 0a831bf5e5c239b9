"""A record as one page of HTML that needs nothing else: no script, no font, no picture from elsewhere. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import ceil, log

from kvmnet.bench.plots import Bar, Square, bars, cdf, heat_map
from kvmnet.bench.record import Record
from kvmnet.bench.results import Cell, Result, notes, results, times, words
from kvmnet.bench.scenarios import Better, Quantity
from kvmnet.bench.statistics import LEVEL

COLUMNS = 7
"""Quantities that a heat map has at most beside each other."""
STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#1d1d1f;background:#fff;max-width:780px;margin:2.5em auto;padding:0 1.2em}
h1{font-size:1.7em;margin:0 0 .2em}h2{font-size:1.2em;margin:2.2em 0 .4em;border-bottom:1px solid #d5d5d5;padding-bottom:.2em}
h3{font-size:1em;margin:1.4em 0 .1em}p.sub{color:#5b5b5f;margin:.1em 0}
svg{width:100%;height:auto;display:block;margin:.3em 0 .6em;font:12px system-ui,"DejaVu Sans",sans-serif}
svg text{fill:#1d1d1f}svg .tick{fill:#5b5b5f;font-size:11px}svg .value{font-weight:600}svg .onshade{fill:#fff;font-weight:600}
svg .grid{stroke:#e4e4e4}svg .axis{stroke:#555}svg .whisker{stroke:#1d1d1f;stroke-width:1.5}
table{border-collapse:collapse;width:100%;font-size:13px;margin:.6em 0}th{text-align:left;font-weight:600;border-bottom:1.5px solid #888}
td,th{padding:.28em .5em .28em 0;vertical-align:top}td{border-bottom:1px solid #e4e4e4}td.n{text-align:right;white-space:nowrap}
.better{color:#0061a0;font-weight:600}.worse{color:#b34700;font-weight:600}.same{color:#5b5b5f}.wrong{color:#b00020;font-weight:600}
ul{padding-left:1.2em}code{font:13px ui-monospace,"DejaVu Sans Mono",monospace;background:#f3f3f3;padding:.1em .3em}
@media print{body{max-width:none;margin:0;font-size:11pt}h2{break-after:avoid}h3{break-after:avoid}svg,tr{break-inside:avoid}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}@page{margin:16mm}}
"""


def page(record: Record) -> str:
    """The whole page."""
    found = results(record)
    main = [r for r in found if r.quantity.main]
    body = "\n".join([*head(record), *summary(record, main), *details(record, main), *everything(record, found),
                      *remarks(record, found), *guests(record)])
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>kvmnet bench, {escape(record.began)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n")


def head(record: Record) -> Iterator[str]:
    m, v = record.machine, record.versions
    yield "<h1>kvmnet bench</h1>"
    yield (f'<p class="sub">{escape(record.began)} · {escape(m.kernel)} · {escape(m.processor or "processor not named")} × {m.cpus} · '
           f"QEMU {escape(v.get('qemu', ''))}, {escape(v.get('accelerator', ''))} · guest {escape(v.get('guest', ''))} · "
           f"kvmnet {escape(v.get('kvmnet', ''))}</p>")
    yield (f'<p class="sub">{record.wish.rounds} rounds, configurations in turns, {record.seconds:.0f} s. Each is compared to '
           f"<b>{escape(record.wish.configurations[0].name)}</b>, pair by pair; intervals hold the ratio in {LEVEL:.0%} of cases.</p>")


def summary(record: Record, main: list[Result]) -> Iterator[str]:
    """The heat map, and what it says in words."""
    others = list(range(1, len(record.wish.configurations)))
    if not main or not others:
        return
    yield "<h2>At a glance</h2>"
    yield ('<p class="sub">Times the first configuration. Blue is better, orange worse, grey: no difference shown '
           "(within the noise of two equals, or too few rounds).</p>")
    columns = [f"{r.scenario.name} {r.place.value.removeprefix('guest-')} {r.quantity.name}" for r in main]
    wide = ceil(len(columns) / ceil(len(columns) / COLUMNS))
    for start in range(0, len(columns), wide):
        part = main[start:start + wide]
        yield heat_map("ratios of all configurations", columns[start:start + wide],
                       [(record.wish.configurations[n].name, [square(r.cells[n], r.quantity) for r in part]) for n in others])


def square(cell: Cell, quantity: Quantity) -> Square:
    if cell.ratio is None:
        return Square("-", None)
    good = cell.good(quantity.better)
    gain = log(cell.ratio.value) * (1 if quantity.better is Better.HIGH else -1)
    return Square(f"{cell.ratio.value:.2f}", None if good is None else max(-1.0, min(1.0, gain / log(2))))


def details(record: Record, main: list[Result]) -> Iterator[str]:
    title = ""
    for result in main:
        if result.title != title:
            title = result.title
            yield f"<h2>{escape(title)}</h2>"
            if result.scenario.times:
                yield from distribution(record, result)
        better = "more is better" if result.quantity.better is Better.HIGH else "less is better"
        noise = f"; two equals differ by {result.noise * 100:.1f}%" if result.noise else ""
        yield f'<h3>{escape(result.quantity.name)}, {escape(result.quantity.unit)}</h3><p class="sub">{better}{noise}</p>'
        yield bars(result.name, [
            Bar(record.wish.configurations[c.number].name, c.figures.median, c.figures.least, c.figures.most, short(c))
            for c in result.cells])


def short(cell: Cell) -> str:
    return f"{cell.ratio.value:.2f}x ({cell.ratio.low:.2f} to {cell.ratio.high:.2f})" if cell.ratio else ""


def distribution(record: Record, result: Result) -> Iterator[str]:
    curves = []
    for number, configuration in enumerate(record.wish.configurations):
        found = times(record, result.scenario.name, result.place, number)
        curves.append((f"{configuration.name} ({found.total:,} samples)", [(v / 1000, share) for v, share in found.cumulative()]))
    yield "<h3>distribution of times</h3>"
    yield cdf(f"{result.title}: distribution of times", "microseconds", curves)


def everything(record: Record, found: list[Result]) -> Iterator[str]:
    yield "<h2>All figures</h2><table><tr><th>load and quantity</th><th>configuration</th><th>median (range)</th><th>against the first</th></tr>"
    for result in found:
        for cell in result.cells:
            kind = {True: "better", False: "worse", None: "same"}[cell.good(result.quantity.better)]
            yield (f"<tr><td>{escape(result.name) if cell.number == 0 else ''}</td>"
                   f"<td>{escape(record.wish.configurations[cell.number].name)}</td><td>{escape(cell.figures.words())}</td>"
                   f'<td class="{kind}">{escape(words(cell, result.quantity))}</td></tr>')
    yield "</table>"


def remarks(record: Record, found: list[Result]) -> Iterator[str]:
    yield "<h2>Notes</h2><ul>"
    for note in notes(record, found):
        yield f"<li>{escape(note)}</li>"
    yield ("<li>Every guest's own kernel, QEMU and the host share this machine's processors, so a ratio says more than a figure."
           "</li></ul>")


def guests(record: Record) -> Iterator[str]:
    """What was asked for, and what the guests have got."""
    if not record.negotiated:
        return
    yield "<h2>What the guests have got</h2><table><tr><th>configuration</th><th>driver</th><th>queues</th><th>MTU</th><th>vCPUs</th><th>negotiated</th></tr>"
    for name, got in record.negotiated.items():
        yield (f"<tr><td>{escape(name)}</td><td>{escape(str(got.get('driver', '')))}</td><td>{got.get('rx', '')}</td>"
               f"<td>{got.get('mtu', '')}</td><td>{got.get('cpus', '')}</td><td>{escape(' '.join(got.get('features', ())))}</td></tr>")
    yield "</table>"
