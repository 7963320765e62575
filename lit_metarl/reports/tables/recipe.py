"""``lit-metarl report RECIPE``: the results of a recipe, written beside it and all made of its record.

``<name>.csv`` is the record, ``<name>.md`` the page for people, ``.figures/<name>*.png`` the curves on it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_metarl.reports.section import ReportError, Section, blank_figure, markdown_table
from lit_metarl.reports.tables.arms import (
    Arm,
    Groups,
    arms_of,
    further,
    groups_of,
    headline,
    improvements,
    names_of,
    relative,
    with_interval,
)
from lit_metarl.reports.tables.curves import (
    BEFORE,
    PUBLISHED_WINDOW,
    RETURN,
    WINDOW,
    add_legend,
    draw_on,
    height_of_legend,
    look_of,
    published_scores,
)
from lit_metarl.reports.tables.record import (
    Evaluation,
    diverged_runs,
    is_return,
    merge,
    metrics_of,
    read_record,
    read_store,
    record_of,
    record_text,
)
from lit_metarl.reports.tables.relation import NOTE as RELATION_NOTE
from lit_metarl.reports.tables.relation import relations
from lit_metarl.reports.tables.statistics import Array, interquartile_mean, performance_profile
from lit_metarl.sweep.recipe import Published, Recipe, load_recipe

FIGURES = ".figures"
_OUT = "eval/out_of_distribution/"
_PUBLISHED = ("published", "published SAC", "ours, same steps")
_NOTE = f"""\
Return: mean of `eval/return` over the last {100 * WINDOW:.0f} % of the steps up to the last one that all arms of the \
environment have, linear between a run's own evaluations; then the interquartile mean over seeds (the mean below 4), \
with the 95 % interval of the stratified bootstrap (10,000 resamples of the seeds of each environment; none for one \
seed, and too narrow for few). Minutes: from the start of a run to its last evaluation up to that step, pauses \
included, mean over seeds. Config: hash of the settings without the seed."""
ADAPTATION_NOTE = """\
 A meta-learner's return is the one after adaptation, on tasks sampled for evaluation; its actions are sampled, but \
PEARL's are the most likely ones."""
"""A sentence on the return of meta-learners, for the note below a table."""
_PUBLISHED_NOTE = f"""\
 Published SAC: mean (min–max; seeds) over the {PUBLISHED_WINDOW:,} steps before the named one, from `data/sac.csv` of \
[pytorch_sac](https://github.com/denisyarats/pytorch_sac); beside it the mean over our seeds of the same steps."""
_IMPROVEMENT_NOTE = """\
The chance that a seed of the row's arm ends above one of the column's, mean over the environments of both, with the \
95 % interval of the same bootstrap."""

_PROFILE_NOTE = """\
Share of the runs on all environments whose return is above a level, in units of the first arm's mean on each \
(performance profile). Bands: 95 % interval at each level by itself, of the bootstrap above."""


def run_recipe(args: argparse.Namespace, path: Path) -> Section:
    """Bring the record of the recipe in ``path`` up to date, and make its page.

    Raises:
        ReportError, ConfigError, TrackingError: there is nothing to report, or the recipe or its record is damaged.
    """
    from lit_metarl.reports.html.sources import recipe_page  # it reads the rows of `results`, which runs this

    recipe = load_recipe(path)
    record = record_of(recipe.path)
    recorded, stored = read_record(record), []
    try:
        stored = read_store(args.root, recipe.name, recipe.metrics)
    except ReportError as error:
        if not recorded:
            raise ReportError(f"{error} Nor is there a record, {record}. Train: {_command('sweep', recipe)}") from error
    rows, remarks = merge(recorded, stored)
    section = section_of(recipe, rows, remarks)
    pages = {args.html: recipe_page(recipe, rows, args.root, args.html)} if args.html else {}
    return replace(section, files={record: record_text(rows), **section.files, **pages})


def best_of(paths: Sequence[Path]) -> Section:
    """The best arm of every recipe on each of its environments and the next, made of the records beside them.

    Raises:
        ReportError, ConfigError: a recipe has no record, or one of the two is damaged.
    """
    lines = []
    for recipe in map(load_recipe, paths):
        rows = read_record(record_of(recipe.path))
        if not rows:
            raise ReportError(f"{recipe.path} has no record yet. Make it: {_command('report', recipe)}")
        arms = arms_of(rows, names_of(rows, recipe.labels()))
        link = f"[{recipe.name}]({recipe.path.with_suffix('.md').as_posix()})"
        for environment in dict.fromkeys(arm.environment for arm in arms):
            here = [(interquartile_mean(arm.scores), arm) for arm in arms if arm.environment == environment]
            (_, best), *others = sorted(here, key=lambda pair: float(pair[0]), reverse=True)
            following = [f"`{arm.name}` {score:.4g}" for score, arm in others[:1]]
            lines.append({"results": link, "next": "".join(following) or "–"} | _cells(recipe, best, []))
    heads = ["results", "environment", "arm", "return", "next", *_PUBLISHED, "seeds", "environment steps"]
    columns = [name for name in heads if any(line[name] != "–" for line in lines)]
    names = {"arm": "best arm", "return": "return (95 % interval)"}
    table = markdown_table(
        [names.get(name, name) for name in columns], [[line[name] for name in columns] for line in lines]
    )
    return Section(table)


def section_of(recipe: Recipe, rows: Sequence[Evaluation], remarks: Sequence[str] = ()) -> Section:
    """The page of a recipe as a file with its figure, and what of it is printed; ``remarks`` are only printed."""
    names = names_of(rows, recipe.labels())
    arms = arms_of(rows, names)
    table = table_of(recipe, arms)
    parts = [f"**{headline(arms)}**", *filter(None, [recipe.note]), table]
    notes = [_note(recipe, arms, table), *remarks_on(recipe, arms, rows)]
    shown = [RETURN, *(metric for metric in recipe.metrics if metric in metrics_of(rows))]
    figures = {_picture(recipe, metric): metric for metric in shown}
    lines = "Lines: mean over seeds. Bands: from the lowest to the highest seed."
    page = [f"# {recipe.title}", *parts, *notes, *(_embedded(path, metric) for path, metric in figures.items()), lines]
    if matrix := improvements(arms):
        parts.append(matrix)
        page += ["## Probability of improvement", matrix, _IMPROVEMENT_NOTE]
    drawn = {path: _draw(groups_of(rows, names, metric), metric) for path, metric in figures.items()}
    if together := relative(arms):
        profile = _figure_file(recipe, "_profile")
        drawn[profile] = _draw_profiles(together, list(dict.fromkeys(arm.name for arm in arms)))
        page += ["## Performance profiles", _PROFILE_NOTE, f"![performance profiles]({FIGURES}/{profile.name})"]
    if related := relations(rows, names, arms):
        parts.append(related)
        page += ["## What goes with the return", related, RELATION_NOTE]
    if any(len(arm.runs) > 1 for arm in arms):
        page += ["## Every seed", _seeds(arms)]
    commands = "\n".join(_command(each, recipe) for each in ("sweep", "report"))
    record = record_of(recipe.path).name
    page += [
        "## Made by",
        f"```bash\n{commands}\n```",
        f"The first command trains what [{record}]({record}) does not have yet, the second makes this page of it.",
    ]
    return Section(
        "\n\n".join(parts),
        [*notes, *remarks],
        drawn,
        {"rows": [_numbers(arm) for arm in arms], "remarks": [*notes, *remarks]},
        files={recipe.path.with_suffix(".md"): "\n\n".join(page) + "\n"},
    )


def _command(command: str, recipe: Recipe) -> str:
    return shlex.join(["lit-metarl", command, recipe.path.as_posix()])


def table_of(recipe: Recipe, arms: Sequence[Arm]) -> str:
    """A line for every arm on every environment, then for every arm on all of them, where that makes sense."""
    found = {metric for arm in arms for metric in arm.more}
    metrics = sorted(found, key=lambda name: (not is_return(name), name.endswith("/return"), name))
    rows = [_cells(recipe, arm, metrics) for arm in arms]
    for name, scores in relative(arms).items():
        line = {"arm": f"`{name}`", "environment": "all, relative to the first arm", "return": with_interval(scores)}
        rows.append(dict.fromkeys(rows[0], "–") | line)
    columns = [name for name in rows[0] if any(row[name] != "–" for row in rows)]
    if len({arm.environment for arm in arms}) == 1:
        columns.remove("environment")
    heads = [f"{name} (95 % interval)" if name == "return" else name for name in columns]
    return markdown_table(heads, [[row[name] for name in columns] for row in rows])


def _seeds(arms: Sequence[Arm]) -> str:
    """A line for every arm on every environment: the return of each seed, and the one before adaptation."""
    seeds = sorted({run.seed for arm in arms for run in arm.runs}, key=lambda seed: (len(seed), seed))
    lines = []
    for arm in arms:
        texts = [f"{score:.4g}" for score in arm.scores]
        if BEFORE in arm.more:
            texts = [f"{text} (from {before:.4g})" for text, before in zip(texts, arm.more[BEFORE], strict=True)]
        found = dict(zip([run.seed for run in arm.runs], texts, strict=True))
        lines.append([f"`{arm.name}`", arm.environment, *(found.get(seed, "–") for seed in seeds)])
    return markdown_table(["arm", "environment", *(f"seed {seed}" for seed in seeds)], lines)


def _cells(recipe: Recipe, arm: Arm, metrics: Sequence[str]) -> dict[str, str]:
    """Column → cell; ``–`` where there is nothing."""
    others = {
        _column(metric): f"{interquartile_mean(arm.more[metric]):.4g}" if metric in arm.more else "–"
        for metric in metrics
    }
    after = [name for name in others if name.startswith(("out of distribution", "`"))]
    known = recipe.published.get(arm.runs[0].arm)
    return {
        "arm": f"`{arm.name}`",
        "environment": arm.environment,
        **{name: cell for name, cell in others.items() if name not in after},
        "return": with_interval([arm.scores]),
        **{name: others[name] for name in after},
        "published": "–" if known is None else f"{known.value:.4g}",
        **_published_sac(arm),
        "seeds": str(len(arm.runs)) + (f", {arm.diverged} more diverged" if arm.diverged else ""),
        "environment steps": f"{arm.step:,}",
        "minutes": f"{np.mean([run.minutes(arm.step) for run in arm.runs]):.1f}",
        "commit": ", ".join(sorted({run.commit for run in arm.runs})),
        "config": ", ".join(sorted({run.config for run in arm.runs})),
    }


def _column(metric: str) -> str:
    """The column of a metric that stands beside the return."""
    if not is_return(metric):
        return f"`{metric}`"
    name = metric.rpartition("/")[2].removeprefix("return").strip("_")  # after_2_steps
    steps = name.split("_")[1] if name else ""
    when = {"": "", "0": "before adaptation", "1": "after 1 step"}.get(steps, f"after {steps} steps")
    return " ".join(word for word in ("out of distribution" if metric.startswith(_OUT) else "", when) if word)


def _published_sac(arm: Arm) -> dict[str, str]:
    """The published score at the last step up to ``arm.step`` that has one, and ours over the same steps."""
    scores = {step: score for step, score in published_scores(arm.environment).items() if step <= arm.step}
    if not scores:
        return {"published SAC": "–", "ours, same steps": "–"}
    step = max(scores)
    mean, low, high, seeds = scores[step]
    ours = np.mean([run.mean_return(step - PUBLISHED_WINDOW, step) for run in arm.runs])
    return {
        "published SAC": f"{mean:.4g} ({low:.4g}–{high:.4g}; {seeds}) at {step:,}",
        "ours, same steps": f"{ours:.4g}",
    }


def _note(recipe: Recipe, arms: Sequence[Arm], table: str) -> str:
    note = _NOTE + (ADAPTATION_NOTE if any(BEFORE in arm.more for arm in arms) else "")
    note += _PUBLISHED_NOTE if "published SAC" in table else ""
    return note + _sources({arm.runs[0].arm: recipe.published.get(arm.runs[0].arm) for arm in arms})


def _sources(published: Mapping[str, Published | None]) -> str:
    sources: dict[str, list[str]] = {}
    for arm, each in published.items():
        if each is not None:
            sources.setdefault(each.source, []).append(f"`{arm}`")
    texts = [f"{source} ({', '.join(arms)})" for source, arms in sources.items()]
    return f" Published: {'; '.join(texts)}." if texts else ""


def remarks_on(recipe: Recipe, arms: Sequence[Arm], rows: Sequence[Evaluation]) -> list[str]:
    """Sentences about arms that went further, are of several configs, are missing, or not the recipe's any more."""
    return [remark for remark in (further(arms), _mixed(arms), *_missing(recipe, rows)) if remark]


def _mixed(arms: Sequence[Arm]) -> str:
    """A sentence about arms whose seeds were not all trained with the same settings; empty if there is none."""
    found = [f"`{arm.name}` on {arm.environment}" for arm in arms if len({run.config for run in arm.runs}) > 1]
    return f"Seeds of one arm differ in more than the seed, see their configs: {'; '.join(found)}." if found else ""


def _missing(recipe: Recipe, rows: Sequence[Evaluation]) -> list[str]:
    """Sentences about what the recipe has and the record has not, seeds and metrics, and the other way round."""
    recorded = {(row.arm, row.seed) for row in rows}
    absent = {arm: [str(seed) for seed in recipe.seeds if (arm, str(seed)) not in recorded] for arm in recipe.labels()}
    lacking = "; ".join(
        f"`{arm}`" + f" seed {', '.join(seeds)}" * (len(seeds) < len(recipe.seeds))
        for arm, seeds in absent.items()
        if seeds
    )
    others = ", ".join(sorted({row.arm for row in rows} - absent.keys()))
    unknown = ", ".join(f"`{metric}`" for metric in recipe.metrics if metric not in metrics_of(rows))
    sentences = {
        f"Not finished, so not counted: {lacking}.": lacking,
        f"Not in the recipe any more: {others}.": others,
        f"Logged by no run: {unknown}.": unknown,
    }
    return diverged_runs(rows) + [sentence for sentence, names in sentences.items() if names]


def _picture(recipe: Recipe, metric: str) -> Path:
    return _figure_file(recipe, "" if metric == RETURN else "_" + metric.replace("/", "_"))


def _figure_file(recipe: Recipe, ending: str) -> Path:
    return recipe.path.parent / FIGURES / f"{recipe.name}{ending}.png"


def _embedded(path: Path, metric: str) -> str:
    return f"![{'learning curves' if metric == RETURN else metric}]({FIGURES}/{path.name})"


def _draw(groups: Groups, metric: str) -> Any:
    """The curves of a metric, a panel for each environment; an arm has the same colour in all."""
    names = list(dict.fromkeys(name for here in groups.values() for name in here))
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    below = rows * height_of_legend(max(len(here) for here in groups.values()))
    figure = blank_figure(6.4 if columns == 1 else 4.4 * columns, below + (4.0 if columns == 1 else 3.4 * rows))
    for index, (environment, here) in enumerate(groups.items(), 1):
        draw_on(figure.add_subplot(rows, columns, index), environment, list(here.items()), names, metric)
    return figure


def _draw_profiles(together: Mapping[str, Sequence[Array]], names: Sequence[str]) -> Any:
    """The performance profile of every arm that is on all environments, in its colour among ``names``."""
    everything = np.concatenate([scores for each in together.values() for scores in each])
    levels = np.linspace(min(0.0, np.nanmin(everything)), 1.05 * np.nanmax(everything), 200)
    figure = blank_figure(6.4, 4.0 + height_of_legend(len(together)))
    axes: Any = figure.add_subplot()
    for name, scores in together.items():
        share, low, high = performance_profile(scores, levels)
        look = look_of(name, names)
        axes.step(levels, share, where="post", label=name, **look)
        if min(len(each) for each in scores) > 1:
            axes.fill_between(levels, low, high, step="post", color=look["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="return, relative to the first arm's mean", ylabel="share of runs above it", xlim=levels[[0, -1]])
    add_legend(axes, len(together))
    return figure


def _numbers(arm: Arm) -> dict[str, Any]:
    return {
        "arm": arm.name,
        "environment": arm.environment,
        "steps": arm.step,
        "returns": {run.seed: float(score) for run, score in zip(arm.runs, arm.scores, strict=True)},
        "more": {metric: arm.mean_of(metric) for metric in arm.more},
        "commits": sorted({run.commit for run in arm.runs}),
        "configs": sorted({run.config for run in arm.runs}),
    }
