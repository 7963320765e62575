"""``lit-metarl report``: the results table of the runs in the tracking store; no number in it is typed by hand."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from lit_metarl.reports.arguments import positive_steps, writable_file
from lit_metarl.reports.section import ReportError, Section, markdown_table
from lit_metarl.reports.tables.curves import (
    PUBLISHED_WINDOW,
    WINDOW,
    Published,
    Run,
    draw_curves,
    published_scores,
    read_runs,
)
from lit_metarl.reports.tables.recipe import ADAPTATION_NOTE, best_of, run_recipe
from lit_metarl.reports.tables.statistics import bootstrap_interval, interquartile_mean

Group = tuple[str, str, str, str]  # experiment, environment, algorithm, config: `Run.group`

_IN_GRID = re.compile(r" data\.env[\w.]*=(\[[^]]*\]|\{[^}]*\}|\S+)")  # an environment, in the name of an arm
_NOTE = f"""\
Return at a step s: mean of `eval/return` over the evaluations in the last {100 * WINDOW:.0f} % of the steps before it \
(0.9 s < step ≤ s), then the interquartile mean (IQM) over seeds, or the mean below 4 seeds. 95 % interval: percentile \
bootstrap over seeds, 10,000 resamples; none for one seed, and too narrow for few. Minutes: from the start of a run to \
its last evaluation counted, pauses included, mean over seeds. Config: hash of the configuration without seed, logger \
and checkpoint."""
_PUBLISHED_NOTE = f"""\
 Published SAC: mean (min–max; seeds) over the last {PUBLISHED_WINDOW:,} steps, from `data/sac.csv` of \
[pytorch_sac](https://github.com/denisyarats/pytorch_sac); beside it the mean over our seeds of the same window."""


@dataclass(frozen=True)
class Row:
    """One line of the table: the seeds of one experiment at ``steps`` environment steps."""

    experiment: str
    arm: str  # of a sweep
    algorithm: str
    environment: str
    steps: int
    statistic: str  # "IQM" or "mean"
    score: float
    interval: tuple[float, float] | None
    before: float | None  # of a meta-learner: the same before adaptation
    returns: dict[str, float]  # by seed
    statuses: dict[str, str]  # by seed
    same_window: float | None  # our mean over the steps that `published` is a mean over
    published: Published | None
    minutes: float
    commits: list[str]
    config: str


def by_group(runs: Sequence[Run]) -> dict[Group, list[Run]]:
    """Sort runs into groups that differ only by the seed; of one seed the newest finished run, else the newest."""
    groups: dict[Group, dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.status == "FINISHED", run.start)):
        groups.setdefault(run.group, {})[run.seed] = run
    return {
        group: [seeds[seed] for seed in sorted(seeds, key=lambda seed: (len(seed), seed))]
        for group, seeds in sorted(groups.items())
    }


def make_rows(groups: Mapping[Group, Sequence[Run]], at: Sequence[int] = ()) -> tuple[list[Row], list[str]]:
    """Make one row for each group and each step of ``at`` that a seed of it reached; by default the last common step.

    Returns:
        The rows, and a sentence about each group some of whose seeds did not reach a step.

    Raises:
        ReportError: no run reached any of the steps.
    """
    rows, left_out = [], []
    for (experiment, environment, _, config), runs in groups.items():
        for step in at or [last_common_step(runs)]:
            if reached := [run for run in runs if run.reached(step)]:
                rows.append(_make_row(reached, step))
            if missing := [run.seed for run in runs if not run.reached(step)]:
                where = f"{experiment} ({config}) on {environment}"
                left_out.append(f"Not evaluated shortly before {step:,} steps: {where}, seed {', '.join(missing)}.")
    if not rows:
        raise ReportError("There is no row for the table. " + " ".join(left_out))
    return rows, left_out


def last_common_step(runs: Sequence[Run]) -> int:
    """The last evaluation of a seed that all seeds reached: where episodes end early, epochs differ in length."""
    ends = sorted({int(run.steps[-1]) for run in runs}, reverse=True)
    return next((step for step in ends if all(run.reached(step) for run in runs)), ends[-1])


def _make_row(runs: Sequence[Run], step: int) -> Row:
    returns = {run.seed: run.mean_return(step * (1 - WINDOW), step) for run in runs}
    scores = np.array(list(returns.values()))
    published = published_scores(runs[0].environment).get(step)
    same = [run.mean_return(step - PUBLISHED_WINDOW, step) for run in runs]
    return Row(
        experiment=runs[0].experiment,
        arm=runs[0].arm,
        algorithm=runs[0].algorithm,
        environment=runs[0].environment,
        steps=step,
        statistic="IQM" if len(runs) >= 4 else "mean",
        score=float(interquartile_mean(scores)),
        interval=bootstrap_interval(scores) if len(runs) > 1 else None,
        before=_before_adaptation(runs, step),
        returns=returns,
        statuses={run.seed: run.status for run in runs},
        same_window=float(np.mean(same)) if published else None,
        published=published,
        minutes=float(np.mean([run.minutes(step) for run in runs])),
        commits=sorted({run.commit for run in runs}),
        config=runs[0].config,
    )


def _before_adaptation(runs: Sequence[Run], step: int) -> float | None:
    scores = [run.mean_return_before(step * (1 - WINDOW), step) for run in runs]
    return None if None in scores else float(interquartile_mean(np.array(scores)))


def section_of(rows: Sequence[Row], remarks: Sequence[str] = ()) -> Section:
    """The table, without columns that are empty throughout, with its reading directions and ``remarks`` below."""
    cells = [_cells(row) for row in rows]
    columns = [name for name in cells[0] if any(row[name] != "–" for row in cells)]
    table = markdown_table(columns, [[row[name] for name in columns] for row in cells])
    note = _NOTE + (_PUBLISHED_NOTE if "published SAC" in columns else "")
    note += ADAPTATION_NOTE if "before adaptation" in columns else ""
    data = [asdict(row) | {"published": row.published and row.published._asdict()} for row in rows]
    return Section(table, [note, *remarks], data={"rows": data, "remarks": list(remarks)})


def _cells(row: Row) -> dict[str, str]:
    unfinished = sorted(status for status in row.statuses.values() if status != "FINISHED")
    scores, published = list(row.returns.values()), row.published
    return {
        "experiment": row.experiment,
        "arm": row.arm or "–",
        "algorithm": row.algorithm,
        "environment": row.environment,
        "environment steps": f"{row.steps:,}",
        "return": f"{row.score:.4g} ({row.statistic})",
        "95 % interval": "–" if row.interval is None else f"{row.interval[0]:.4g} to {row.interval[1]:.4g}",
        "min–max": f"{np.min(scores):.4g} to {np.max(scores):.4g}",
        "before adaptation": "–" if row.before is None else f"{row.before:.4g}",
        "seeds": f"{len(scores)}" + (f" ({', '.join(unfinished)})" if unfinished else ""),
        "published SAC": "–"
        if published is None
        else f"{published.mean:.4g} ({published.minimum:.4g}–{published.maximum:.4g}; {published.seeds})",
        "ours, same window": "–" if row.same_window is None else f"{row.same_window:.4g}",
        "minutes": f"{row.minutes:.1f}",
        "commit": ", ".join(row.commits),
        "config": row.config,
    }


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose runs of a store and steps of their curves."""
    add = parser.add_argument
    add("--root", default="mlruns", help="folder of the store (default: %(default)s)")
    add("--experiment", nargs="+", default=[], metavar="NAME", help="experiments (default: all)")
    add("--at", nargs="+", type=positive_steps, default=[], metavar="STEPS", help="env steps (default: last common)")
    add("--all", action="store_true", help="also runs that are running or failed")


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl report``."""
    parser.epilog = (
        "With RECIPE, its finished runs go into RECIPE.csv beside it, which is the record of them and stays when the "
        "store is gone; RECIPE.md and .figures/RECIPE.png are made of the record. Commit them. To have a run out of "
        "it, delete its lines. Of several recipes the records are read, and the best arm of each is listed."
    )
    parser.add_argument("recipes", nargs="*", type=Path, metavar="RECIPE", help="such as configs/sweep/navigation.yaml")
    add_store(parser)
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="write the rows, with every seed, as JSON")
    parser.add_argument("--curves", metavar="DIR", help="draw the learning curves, one PNG per environment")
    parser.add_argument(
        "--html", type=writable_file, metavar="FILE", help="write one page with curves to explore, tables and settings"
    )
    parser.add_argument(
        "--metrics", nargs="+", default=[], metavar="NAME", help="on that page besides all returns: train/entropy …"
    )
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """The results table, with learning curves if asked for; or the page of a recipe, or the best arms of several.

    Raises:
        ReportError, ConfigError, TrackingError: there is nothing to report.
    """
    if args.recipes:
        one = len(args.recipes) == 1
        refused = ("experiment", "at", "all", "curves", "metrics", *(() if one else ("html", "json")))
        if given := [f"--{name}" for name in refused if getattr(args, name)]:
            kind = "a recipe, whose page says what it has" if one else "several recipes"
            raise ReportError(f"{', '.join(given)} cannot be used with {kind}.")
        return run_recipe(args, args.recipes[0]) if one else best_of(args.recipes)
    from lit_metarl.reports.html.sources import store_page  # it reads this module's rows

    runs, left_out = read_runs(args.root, args.experiment, args.all)
    groups = by_group(runs)
    rows, remarks = make_rows(groups, args.at)
    if left_out:
        remarks.append(f"{left_out} runs without evaluations or the tags of a training run are left out.")
    figures = draw_curves(labelled(groups), Path(args.curves)) if args.curves else {}
    pages = {args.html: store_page(args.root, runs, args.html, args.metrics)} if args.html else {}
    return replace(section_of(rows, remarks), figures=figures, files=pages)


def named(metrics: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """The runs with the name of their arm as experiment: as short as tells the arms apart.

    The arm is a sweep's, else the algorithm; with it stands the experiment where there are several. A sweep's place in
    a grid of environments is left out where the environment tells it. Where one name still has several configs on one
    environment, the hash of the config follows.
    """
    everything = [run for runs in metrics.values() for run in runs]
    places: dict[tuple[str, str], set[str]] = {}
    for run in everything:
        places.setdefault((_IN_GRID.sub("", run.arm), run.environment), set()).add(run.arm)
    needed = {arm for arms in places.values() if len(arms) > 1 for arm in arms}
    arms = {run.arm: run.arm if run.arm in needed else _IN_GRID.sub("", run.arm) for run in everything}
    parts = {run.run_id: [run.experiment, arms[run.arm] or run.algorithm] for run in everything}
    varying = [len({words[i] for words in parts.values()}) > 1 for i in (0, 1)]
    names = {
        run_id: ", ".join(dict.fromkeys(word for word, varies in zip(words, varying, strict=True) if varies))
        or words[1]
        for run_id, words in parts.items()
    }
    configs: dict[tuple[str, str], set[str]] = {}
    for run in everything:
        configs.setdefault((names[run.run_id], run.environment), set()).add(run.config)
    ambiguous = {name for (name, _), found in configs.items() if len(found) > 1}

    def rename(run: Run) -> Run:
        name = names[run.run_id]
        return replace(run, experiment=f"{name}, {run.config}" if name in ambiguous else name)

    return {metric: [rename(run) for run in runs] for metric, runs in metrics.items()}


def labelled(groups: Mapping[Group, list[Run]]) -> list[tuple[str, list[Run]]]:
    """Name, see :func:`named`, and runs of every group, whose experiment it becomes, so that each has its colour."""
    runs = named({"": [run for each in groups.values() for run in each]})[""]
    ends = np.cumsum([len(each) for each in groups.values()])
    parts = [runs[end - len(each) : end] for each, end in zip(groups.values(), ends, strict=True)]
    return [(part[0].experiment, part) for part in parts]
