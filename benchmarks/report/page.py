"""The page: one self-contained HTML file, put together from a run's figures."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from benchmarks import machine
from benchmarks.report import sections
from benchmarks.report.colours import colours
from benchmarks.report.comparisons import Comparison, compare, number, size, storage_name
from benchmarks.report.headline import Block, headline
from benchmarks.report.placing import Figures
from benchmarks.report.sections import Plot, Section
from benchmarks.report.timeline import SPANS, gantt, totals
from benchmarks.report.trace import encode_trace
from benchmarks.results import Run, Timeline
from ckptflow.report.skeleton import render

_TITLE = "Checkpoints of TensorFlow training: how fast, and at what cost"


def write_report(run: Run, path: str) -> None:
    """Writes `run` as one HTML page that reads nothing from anywhere."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(page(run))


def page(run: Run) -> str:
    """What cannot be shown and the bias first; then what was found. Every string of the run is text, never markup."""
    figures = Figures()
    comparisons = compare(run)
    parts = [_head(run), _first(run)]
    found = sections.sections(comparisons, colours(run))
    parts.append(_links(found, has_timelines=bool(run.timelines)))
    parts.append(_headline(headline(comparisons)) if run.results else "<p>This run has no results.</p>")
    parts += [_section(section, figures) for section in found]
    parts.append(_timelines(run.timelines, figures))
    body = Markup("\n".join(parts))  # each part escapes what it shows
    return render(
        "benchmarks.html",
        title=_TITLE,
        generator="benchmarks.report",
        packages=("benchmarks.report",),
        body=body,
        figures=figures.json(),
        plotly=Markup(get_plotlyjs()),
    )


def _head(run: Run) -> str:
    rows = "".join(f"<tr><th>{_e(name)}</th><td>{_e(_flat(value))}</td></tr>" for name, value in run.machine.items())
    return f"""<header class="meta"><h1>{_TITLE}</h1>
<p>Run of {_e(run.created_at)}: <code>{_e(run.command)}</code></p>
<p>{_e(machine.one_line(run.machine))}</p>
<details><summary>Machine and versions</summary><div class="wide"><table>{rows}</table></div>
</header>"""


def _first(run: Run) -> str:
    return f"""<section class="first" id="first"><h2>What this cannot show</h2>{_list(run.cannot_show)}
<h2>Bias</h2>{_list(run.bias)}</section>"""


def _links(found: Sequence[Section], *, has_timelines: bool) -> str:
    places = [("headline", "Overview"), *((section.name, section.title) for section in found)]
    places += [("timelines", "One save over time")] if has_timelines else []
    links = (f'<a href="#{name}">{_e(title)}</a>' for name, title in places)
    return f"<nav>{' '.join(links)}</nav>"


def _headline(blocks: Sequence[Block]) -> str:
    heads = ("", "ckptflow", "raw baseline", "ckptflow / raw", "best alternative", "alternative / ckptflow")
    columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
    rows = []
    for block in blocks:
        rows.append(f'<tr><th class="block" colspan="6">{_e(block.title)}</th></tr>')
        for row in block.rows:
            behind = " behind" if row.is_behind else ""
            cells = zip(
                ("ours", "", "ratio", "", f"ratio{behind}"),
                heads[1:],
                (row.ours, row.limit, row.to_limit, row.peer, row.to_peer),
                strict=True,
            )
            tds = "".join(f'<td class="{css}" data-head="{head}:">{_e(text)}</td>' for css, head, text in cells)
            rows.append(f'<tr><th scope="row">{_e(row.what)}</th>{tds}</tr>')
    return f"""<section id="headline"><h2>Overview</h2>
<p class="soft">Medians; less is better. The raw baseline moves the same bytes with the bare device or client and a
fixed number of requests at once, and neither packs nor checks them.</p>
<p class="soft">Below 1.00 ×, ckptflow was faster than the raw baseline: it had more requests in progress, sent
fewer bytes, or the difference is noise.</p>
<p class="soft">The last column is how many times as much the best alternative takes as ckptflow; if it is underlined
with dots, that alternative is ahead. Empty: there is nothing of that kind to compare with.</p>
<div class="wide"><table class="stacked"><thead><tr>{columns}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
</section>"""


def _section(section: Section, figures: Figures) -> str:
    parts = [f'<section id="{section.name}"><h2>{_e(section.title)}</h2><p class="soft">{_e(section.words)}</p>']
    parts += [_grid(section.plots, figures), _missing(section)]
    for part in section.parts:
        is_open = " open" if part.is_open else ""
        grid, notes = _grid(part.plots, figures), _notes(part.comparison)
        parts.append(f"<details{is_open}><summary>{_e(part.title)}</summary>{grid}{notes}</details>")
    parts.append("</section>")
    return "".join(parts)


def _grid(plots: Sequence[Plot], figures: Figures) -> str:
    return f'<div class="grid">{"".join(_plot(plot, figures) for plot in plots)}</div>' if plots else ""


def _plot(plot: Plot, figures: Figures) -> str:
    words = f'<div class="soft">{_e(plot.words)}</div>' if plot.words else ""
    place = figures.place(plot.figure, plot.title)
    return f"<figure><figcaption><h3>{_e(plot.title)}</h3>{words}</figcaption>{place}</figure>"


def _missing(section: Section) -> str:
    """Who failed, why, and at which points, in view also where those are folded."""
    where: dict[tuple[str, str], list[str]] = {}
    for part in section.parts:
        for result, label in zip(part.comparison.results, part.comparison.labels, strict=True):
            if result.error:
                where.setdefault((label, result.error), []).append(part.title)
    lines = [
        f'<li><b>{_e(label)}</b>: {_e(error)} <span class="soft">({_e("; ".join(titles))})</span></li>'
        for (label, error), titles in where.items()
    ]
    return f'<div class="missing">Missing:<ul>{"".join(lines)}</ul></div>' if lines else ""


def _notes(comparison: Comparison) -> str:
    lines = [
        f"<li><b>{_e(label)}</b>, {result.rounds} rounds: {_e(result.note)}</li>"
        for result, label in zip(comparison.results, comparison.labels, strict=True)
        if result.note
    ]
    return f"<details><summary>Notes</summary><ul>{''.join(lines)}</ul></details>" if lines else ""


def _timelines(timelines: Iterable[Timeline], figures: Figures) -> str:
    parts = [_timeline(timeline, number, figures) for number, timeline in enumerate(timelines)]
    if not parts:
        return ""
    return f"""<section id="timelines"><h2>One save over time</h2>
<p class="soft">A lane is a thread of a worker (w0 is the coordinator), a bar is a piece of work; nested work is
thinner. Zero is the call of <code>save</code>. Drag to zoom in, double-click to zoom out.</p>
{"".join(parts)}</section>"""


def _timeline(timeline: Timeline, index: int, figures: Figures) -> str:
    about = f"{timeline.title}: {size(timeline.size_bytes)}, {storage_name(timeline.storage)}"
    if not timeline.events:
        return f"<h3>{_e(about)}</h3><p>Nothing was recorded.</p>"
    heads, rows = ("", "spans", "total", "bytes", "from, to", "what"), []
    for total in totals(timeline):
        colour = SPANS.get(total.name, ("#6E4B3A", ""))[0]
        moved = size(total.size_bytes) if total.size_bytes else ""
        cells = (str(total.count), f"{number(total.busy_s * 1e3)} ms", moved)
        span = f"{number(total.first_s * 1e3)} to {number(total.last_s * 1e3)} ms"
        numbers = "".join(
            f'<td class="number" data-head="{head}:">{_e(cell)}</td>'
            for head, cell in zip(heads[1:], (*cells, span), strict=False)
        )
        key = f'<span class="key" style="background:{colour}"></span>'
        rows.append(f"<tr><th scope='row'>{key}{_e(total.name)}</th>{numbers}<td>{_e(total.meaning)}</td></tr>")
    columns = "".join(f"<th>{head}</th>" for head in heads)
    trace = base64.b64encode(encode_trace(timeline)).decode()
    return f"""<figure class="timeline"><figcaption><h3>{_e(about)}</h3></figcaption>
{figures.place(gantt(timeline), about)}
<details{" open" if index == 0 else ""}><summary>What each kind of work is, and how long it took</summary>
<div class="wide"><table class="stacked"><thead><tr>{columns}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
</details>
<p class="soft"><a download="save-{index}.trace.json" href="data:application/json;base64,{trace}">Save it as a trace</a>
for ui.perfetto.dev and chrome://tracing.</p></figure>"""


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_e(line)}</li>' for line in lines) or '<li>Nothing.</li>'}</ul>"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _e(text: str) -> str:
    return html.escape(text)
