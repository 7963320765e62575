"""``lit-metarl report --html``: one file with curves to explore, tables, settings and films, that loads nothing.

Curves are drawn by uPlot (MIT licence, in ``vendor/``). What comes from runs is escaped, and the page's content
security policy lets nothing run but the scripts that were put in here, known by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lit_metarl.reports.html.data import chart_data
from lit_metarl.reports.html.sections import (
    Line,
    facts,
    films,
    inline,
    markdown_sheet,
    results_table,
    section,
    seeds_table,
    settings_tables,
)
from lit_metarl.reports.html.store import Details
from lit_metarl.reports.tables.curves import RETURN, Run, published_scores

Table = tuple[Sequence[Line], Sequence[str]]
"""Lines of the results, and remarks on them."""

FILMS = 200_000  # bytes of films inside a page; more are linked

_CURVES_NOTE = """\
Line: interquartile mean over seeds, below 4 seeds the mean, linear between evaluations. 95 % interval: percentile \
bootstrap over seeds, too narrow for few. Drag to zoom, double-click to see all; press an arm to hide it, double-click \
to see it alone."""
_MARKS_NOTE = " Circles: SAC as published, mean of the last 100,000 steps, with the lowest and the highest seed."
_PARTIAL_NOTE = " An arm's line ends where one of its seeds ends; thin lines are the seeds."
_PUBLISHED_NOTE = " Dotted: the published return of the arm in its colour, see below."
_ADAPTATION_NOTE = """\
Return after every adaptation step, of sampled actions (PEARL: the most likely ones); the line is the mean over \
seeds, the band from the lowest to the highest seed. Thin lines are single tasks where the runs stored them, else \
seeds. Dashed: random actions."""
_IMPROVEMENT_NOTE = """\
<p class="note">The chance that a seed of the row's arm ends above one of the column's, mean over the environments of \
both, with the 95 % interval of the same bootstrap.</p>"""
_RESULTS_NOTE = """\
Mean of the evaluations in the last tenth of the steps, then over seeds as above; 10,000 resamples. Small dots are \
seeds. Minutes: from the start of a run to its last evaluation, pauses included."""


def make_page(
    title: str,
    metrics: Mapping[str, Sequence[Run]],
    tables: Mapping[str, Table],
    details: Mapping[str, Details],
    path: Path,
    *,
    headline: str = "",
    improvements: str = "",
    budget: int = FILMS,
) -> str:
    """A page of ``metrics``.

    Args:
        title: of the page.
        metrics: metric → runs that have it, their arm as experiment; ``eval/return`` among them and first shown.
        tables: heading → lines of results, and remarks on them in Markdown.
        details: of runs, by id; of those that no store has, none.
        path: where the page will be, which links to films start from.
        headline: Markdown sentences that say what the page shows.
        improvements: Markdown table of the probability that one arm beats another.
        budget: bytes of films inside the page.
    """
    runs = metrics[RETURN]
    data = chart_data(metrics, details, _published(tables))
    head = [f"{_count(len(data['arms']), 'arm')}, {_count(len(runs), 'run')}", *facts(runs)]
    head.append(f"made {datetime.now(UTC):%Y-%m-%d} by lit_metarl {version('lit_metarl')}")
    scripts = [_read("vendor/uPlot.iife.min.js"), _read("page.js")]
    sections = [
        _results(tables, runs, data["arms"]),
        section("improvement", "Probability of improvement", markdown_sheet(improvements), _IMPROVEMENT_NOTE)
        if improvements
        else "",
        settings_tables(runs),
        films(runs, details, path, budget),
    ]
    return Template(_read("page.html")).substitute(
        policy=_policy(scripts),
        title=escape(title),
        style=_read("vendor/uPlot.min.css") + _read("page.css"),
        about=escape(" · ".join(head)),
        headline=f'<p class="headline">{inline(headline)}</p>' if headline else "",
        curves_note=_CURVES_NOTE + _more_notes(data["panels"]),
        adaptation=_adaptation() if data["adaptation"] else "",
        sections="\n".join(part for part in sections if part),
        footer='Curves are drawn by <a href="https://github.com/leeoniya/uPlot">uPlot</a>. This page loads nothing.',
        data=as_json(data),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts) + f"\n<!--\n{_read('vendor/LICENSE')}-->",
    )


def _more_notes(panels: Sequence[Mapping[str, Any]]) -> str:
    """Reading directions of what only some charts have."""
    curves = [curve for panel in panels for found in panel["curves"].values() for curve in found]
    notes = {
        _PARTIAL_NOTE: any(curve["partial"] for curve in curves),
        _MARKS_NOTE: any(panel["marks"] for panel in panels),
        _PUBLISHED_NOTE: any(curve["published"] is not None for curve in curves),
    }
    return "".join(note for note, needed in notes.items() if needed)


def _published(tables: Mapping[str, Table]) -> dict[tuple[str, str], float]:
    """(arm, environment) → a published return; none where published curves are marked point by point."""
    lines = [line for lines, _ in tables.values() for line in lines if not published_scores(line.environment)]
    return {(line.arm, line.environment): line.published for line in lines if line.published is not None}


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def as_json(data: Any) -> str:
    """``data`` for a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _read(name: str) -> str:
    return files("lit_metarl.reports.html").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing from anywhere but this file, and of scripts only ``scripts``."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; media-src data:; img-src data:"


def _adaptation() -> str:
    check = '<label class="controls"><span><input type="checkbox" id="tasks"> every task</span></label>'
    plots = '<div class="plots small" id="adaptation"></div>'
    return section("adaptation-title", "Adaptation", check, plots, f'<p class="note">{_ADAPTATION_NOTE}</p>')


def _results(tables: Mapping[str, Table], runs: Sequence[Run], arms: Sequence[str]) -> str:
    """The tables of results, and all runs."""
    parts = []
    for heading, (lines, remarks) in tables.items():
        if len(tables) > 1:
            parts.append(f"<h3>{escape(heading)}</h3>")
        parts.append(results_table(lines, arms))
        parts += [f'<p class="note">{inline(remark)}</p>' for remark in remarks]
    parts += [f'<p class="note">{_RESULTS_NOTE}</p>', seeds_table(runs, arms)]
    return section("results", "Results", *parts)
