"""The parts of a page that need no script: tables of results, settings and seeds, films. All text is escaped."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from lit_metarl.reports.html.store import Details
from lit_metarl.reports.tables.curves import Run

COLOURS = 8  # of arms, in page.css; page.js knows the number too


class Line(NamedTuple):
    """A line of the results: an arm on an environment.

    Attributes:
        step: environment steps; None of several environments together.
        score: over seeds.
        interval: of it, with 95 % confidence; None for one seed.
        scores: of the seeds.
        before: the score before adaptation.
        published: by others.
        same_window: ours over the steps that ``published`` is a mean over.
        minutes: mean over seeds; None of several environments together.
        unfinished: how the seeds stand that have not finished.
    """

    arm: str
    environment: str
    algorithm: str
    step: int | None
    score: float
    interval: tuple[float, float] | None
    scores: Sequence[float]
    before: float | None
    published: float | None
    same_window: float | None
    minutes: float | None
    commits: Sequence[str]
    configs: Sequence[str]
    unfinished: Sequence[str] = ()


Cell = tuple[str, str, str | float | None]
"""A cell of a table: HTML, its class, and the value that it is sorted by (None: its text)."""


def section(name: str, title: str, *parts: str) -> str:
    """A section of the page under a heading."""
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(title)}</h2>\n' + "\n".join(parts) + "</section>"
    )


def sheet(head: Sequence[tuple[str, str]], rows: Iterable[Sequence[Cell]], classes: str = "sortable") -> str:
    """A table: names and classes of its columns, and its cells, the first of each row its name."""
    heads = "".join(f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in head)
    body = []
    for first, *others in rows:
        cells = [f'<th scope="row"{_attributes(first)}>{first[0]}</th>']
        cells += [f"<td{_attributes(cell)}>{cell[0]}</td>" for cell in others]
        body.append(f"<tr>{''.join(cells)}</tr>")
    table = f'<table class="sheet {classes}"><thead><tr>{heads}</tr></thead><tbody>\n' + "\n".join(body)
    return f'<div class="scroll" tabindex="0">{table}\n</tbody></table></div>'


def _attributes(cell: Cell) -> str:
    _, kind, value = cell
    sorted_by = "" if value is None else f' data-value="{escape(str(value))}"'
    return (f' class="{kind}"' if kind else "") + sorted_by


def _text(words: str, kind: str = "") -> Cell:
    return escape(words), kind, None


def _number(value: float | None, digits: str, kind: str = "number") -> Cell:
    """A number with a minus sign; what is none or missing is sorted below all numbers."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else f"{value}", kind, "-Infinity"
    return _minus(f"{value:{digits}}"), kind, value


def _minus(text: str) -> str:
    return text.replace("-", "−")


def digits_of(values: Iterable[float | None]) -> str:
    """The format with as many decimals for all ``values`` as give the largest of them four digits."""
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    whole = math.floor(math.log10(largest)) + 1 if largest > 0 else 1
    return f",.{min(max(4 - whole, 0), 6)}f"


def results_table(rows: Sequence[Line], arms: Sequence[str]) -> str:
    """The results with a picture of every row's seeds and interval, on one scale for each environment.

    Args:
        rows: of the table.
        arms: in the order of their colours.
    """
    rows = sorted(rows, key=lambda row: (row.step is None, row.environment, arms.index(row.arm), row.step or 0))
    scales = {}
    for environment, found in groupby(rows, lambda row: row.environment):
        values = [value for row in found for value in (*row.scores, *(row.interval or ())) if math.isfinite(value)]
        scales[environment] = min(values, default=0.0), max(values, default=0.0)
    digits = digits_of([row.score for row in rows] + [row.before for row in rows])
    colours = [f"var(--arm-{arms.index(row.arm) % COLOURS})" for row in rows]
    columns: list[tuple[str, str, list[Cell]]] = [
        ("arm", "", [_arm(row.arm, colour) for row, colour in zip(rows, colours, strict=True)]),
        ("environment", "plain", [_text(row.environment, "plain") for row in rows]),
        ("return", "number", [_number(row.score, digits, "number mean") for row in rows]),
        ("95 % interval", "number", [_interval(row, digits) for row in rows]),
        ("seeds on one scale", "", [_whisker(row, scales, colour) for row, colour in zip(rows, colours, strict=True)]),
        ("seeds", "number", [_seeds(row) for row in rows]),
        ("before adaptation", "number", [_number(row.before, digits) for row in rows]),
        ("published", "number", [_number(row.published, digits) for row in rows]),
        ("same window", "number", [_number(row.same_window, digits) for row in rows]),
        ("steps", "number", [_number(row.step, ",") for row in rows]),
        ("minutes", "number", [_number(row.minutes, ",.1f") for row in rows]),
        ("algorithm", "", [_text(row.algorithm) for row in rows]),
        ("commit", "plain", [(_codes(row.commits), "plain", None) for row in rows]),
        ("config", "plain", [(_codes(row.configs), "plain", None) for row in rows]),
    ]
    kept = [column for column in columns if _tells(column[0], column[2])]
    return sheet([column[:2] for column in kept], zip(*(cells for *_, cells in kept), strict=True))


def inline(markdown: str) -> str:
    """A Markdown sentence whose only marks are backticks."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(markdown))


def markdown_sheet(table: str) -> str:
    """A table of :func:`lit_metarl.reports.section.markdown_table`, of numbers but for the first cell of a line."""
    lines = [[cell.replace("\\|", "|") for cell in re.split(r" \| ", line[2:-2])] for line in table.splitlines()]
    kinds = ["", *["number"] * (len(lines[0]) - 1)]
    rows = [[(inline(cell), kind, None) for cell, kind in zip(line, kinds, strict=True)] for line in lines[2:]]
    return sheet([(name.replace("`", ""), kind) for name, kind in zip(lines[0], kinds, strict=True)], rows, "")


def _tells(name: str, cells: Sequence[Cell]) -> bool:
    if name in ("environment", "algorithm"):  # one for all is said in the page's head
        return len({cell[0] for cell in cells}) > 1
    return any(cell[0] not in ("–", "") for cell in cells)


def _arm(name: str, colour: str) -> Cell:
    return f'<span class="arm" style="--arm: {colour}">{escape(name)}</span>', "", name


def _interval(row: Line, digits: str) -> Cell:
    if row.interval is None:
        return "–", "number", "-Infinity"
    low, high = row.interval
    if not math.isfinite(low + high):
        return "–", "number", "-Infinity"
    return f"{_minus(f'{low:{digits}}')} to {_minus(f'{high:{digits}}')}", "number", low


def _seeds(row: Line) -> Cell:
    unfinished = f" ({', '.join(row.unfinished)})" if row.unfinished else ""
    return escape(f"{len(row.scores)}{unfinished}"), "number", len(row.scores)


def _codes(words: Sequence[str]) -> str:
    return " ".join(f"<code>{escape(word)}</code>" for word in words)


def _whisker(row: Line, scales: Mapping[str, tuple[float, float]], colour: str) -> Cell:
    """A dot for each seed, the interval as a line and the score in front."""
    low, high = scales[row.environment]

    def at(value: float) -> str:
        return f"{5 + 134 * ((value - low) / (high - low) if high > low else 0.5):.1f}"

    finite = [value for value in row.scores if math.isfinite(value)]
    shapes = [f'<circle class="seed" cx="{at(value)}" cy="8" r="2.5"/>' for value in finite]
    if math.isfinite(row.score):
        interval = row.interval or (row.score, row.score)
        shapes.insert(0, f'<line x1="{at(interval[0])}" y1="8" x2="{at(interval[1])}" y2="8"/>')
        shapes.append(f'<circle class="score" cx="{at(row.score)}" cy="8" r="4.5"/>')
    picture = f'<svg class="whisker" viewBox="0 0 144 16" aria-hidden="true" style="--arm: {colour}">'
    return f"{picture}{''.join(shapes)}</svg>", "", row.score if math.isfinite(row.score) else "-Infinity"


def settings_tables(runs: Sequence[Run]) -> str:
    """The settings that differ between arms, and folded away those that all share; empty if none is known."""
    known = [run for run in runs if run.settings]
    arms = list(dict.fromkeys(run.experiment for run in known))
    found = {arm: _settings_of([run for run in known if run.experiment == arm]) for arm in arms}
    names = sorted({name for settings in found.values() for name in settings})
    if not names:
        return ""
    rows = {name: [found[arm].get(name, "") for arm in arms] for name in names}
    differing = {name: values for name, values in rows.items() if len(set(values)) > 1}
    parts = []
    if differing:
        head = [("setting", ""), *((arm, "") for arm in arms)]
        lines = [[(_codes([name]), "", None), *(_value(value) for value in rows[name])] for name in differing]
        parts.append(sheet(head, lines, "settings"))
    else:
        parts.append("<p>None differs.</p>" if len(arms) > 1 else "<p>There is one arm.</p>")
    shared = [
        [(_codes([name]), "", None), _value(rows[name][0])]
        for name in names
        if name not in differing and rows[name][0] != "null"
    ]
    table = sheet([("setting", ""), ("value", "")], shared, "settings")
    parts.append(f"<details><summary>What all arms share</summary>{table}</details>")
    return section("settings", "Settings that differ", *parts)


def _settings_of(runs: Sequence[Run]) -> dict[str, str]:
    """Setting → value, all of them where runs of one arm differ, as on several environments."""
    values: dict[str, list[str]] = {}
    for run in runs:
        for name, value in flat(run.settings).items():
            values.setdefault(name, []).append(value if isinstance(value, str) else json.dumps(value, default=str))
    return {name: "\n".join(sorted(set(found))) for name, found in values.items()}


def flat(config: Any, name: str = "") -> dict[str, Any]:
    """A nested config by dotted names: ``model.class_path`` is ``model``, and ``init_args`` is left out."""
    if not isinstance(config, Mapping):
        return {name: config}
    settings: dict[str, Any] = {}
    for key, value in config.items():
        inner = name if key in ("class_path", "init_args") else f"{name}.{key}" if name else str(key)
        settings |= flat(value, inner)
    return settings


def _value(text: str) -> Cell:
    if text.startswith("lit_metarl.") and "\n" not in text:  # a class: its module stands in the tip
        return f'<code title="{escape(text)}">{escape(text.rpartition(".")[2])}</code>', "", None
    return (f"<code>{escape(text)}</code>", "", None) if text else ('<span class="same">–</span>', "", None)


def seeds_table(runs: Sequence[Run], arms: Sequence[str]) -> str:
    """Every run, folded away: what its last evaluation was, how it ended, and where to find it in MLflow."""
    head = [("arm", ""), ("environment", "plain"), ("seed", "number"), ("last return", "number"), ("steps", "number")]
    head += [("minutes", "number"), ("status", ""), ("commit", "plain"), ("run", "plain")]
    ordered = sorted(runs, key=lambda run: (run.environment, arms.index(run.experiment), len(run.seed), run.seed))
    digits = digits_of(float(run.returns[-1]) for run in ordered)
    lines: list[list[Cell]] = [
        [
            _text(run.experiment),
            _text(run.environment, "plain"),
            (escape(run.seed), "number", None),
            _number(float(run.returns[-1]), digits),
            _number(float(run.steps[-1]), ",.0f"),
            _number(run.minutes(int(run.steps[-1])), ",.1f"),
            _text(run.status.lower()),
            (_codes([run.commit]), "plain", None),
            (_codes([run.run_id]), "plain", None),
        ]
        for run in ordered
    ]
    return f"<details><summary>Runs, one by one</summary>{sheet(head, lines)}</details>"


def films(runs: Sequence[Run], details: Mapping[str, Details], page: Path, budget: int) -> str:
    """Films of each arm's first run that has some: inside the page up to ``budget`` bytes in all, then as links."""
    figures, done = [], set()
    several = len({run.environment for run in runs}) > 1
    for run in runs:
        found = details[run.run_id].films if run.run_id in details else {}
        if not found or (run.experiment, run.environment) in done:
            continue
        done.add((run.experiment, run.environment))
        place = [run.environment] if several else []
        for name, file in found.items():
            what = escape(", ".join([run.experiment, *place, f"seed {run.seed}: {name.replace('_', ' ')}"]))
            size = file.stat().st_size
            if size <= budget:
                budget -= size
                data = base64.b64encode(file.read_bytes()).decode()
                source = f'src="data:video/mp4;base64,{data}" aria-label="{what}"'
                video = f'<video controls muted loop playsinline preload="metadata" {source}></video>'
                figures.append(f"<figure>{video}<figcaption>{what}</figcaption></figure>")
            else:
                link = quote(Path(os.path.relpath(file.resolve(), page.resolve().parent)).as_posix())
                caption = f'<a href="{link}">{what}</a> ({size / 1e6:.1f} MB)'
                figures.append(f"<figure><figcaption>{caption}</figcaption></figure>")
    return section("films", "Films", f'<div class="films">{"".join(figures)}</div>') if figures else ""


def facts(runs: Sequence[Run]) -> list[str]:
    """Sentences for the page's head: environment, algorithm and commit where they are the same for all runs."""
    found: list[tuple[str, Any]] = [
        ("environment", {run.environment for run in runs}),
        ("algorithm", {run.algorithm for run in runs}),
        ("commit", {run.commit for run in runs}),
    ]
    return [f"{name} {next(iter(values))}" for name, values in found if len(values) == 1]
