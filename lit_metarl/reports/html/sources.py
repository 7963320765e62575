"""Pages of the runs in a store, and of a recipe's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_metarl.reports.html.data import splits_of, without_repeats
from lit_metarl.reports.html.page import Table, make_page
from lit_metarl.reports.html.sections import Line, flat
from lit_metarl.reports.html.store import read_details
from lit_metarl.reports.section import ReportError
from lit_metarl.reports.tables.arms import Arm, arms_of, groups_of, headline, improvements, names_of, relative
from lit_metarl.reports.tables.curves import BEFORE, NOT_SETTINGS, RETURN, Run, read_metric
from lit_metarl.reports.tables.recipe import remarks_on
from lit_metarl.reports.tables.record import Evaluation, metrics_of
from lit_metarl.reports.tables.results import Row, by_group, make_rows, named
from lit_metarl.reports.tables.statistics import bootstrap_interval, interquartile_mean
from lit_metarl.sweep.recipe import Label, Recipe, label
from lit_metarl.tracking import DIVERGED
from lit_metarl.tracking.store import DATABASE


def store_page(root: Path | str, runs: Sequence[Run], path: Path, more: Sequence[str] = ()) -> str:
    """The page of ``runs`` of the store in ``root``, of one seed of a configuration the newest finished one.

    Args:
        root: folder of the store.
        runs: with ``eval/return``.
        path: where the page will be.
        more: metrics besides all evaluated returns, such as ``train/return``.

    Raises:
        ReportError: no run has a metric of ``more``.
        TrackingError: the store cannot be opened.
    """
    kept = {run.run_id for seeds in by_group(runs).values() for run in seeds}
    runs = [run for run in runs if run.run_id in kept]
    details = read_details(root, runs)
    names = sorted({name for each in details.values() for name in each.returns} - {RETURN, *more})
    metrics = {RETURN: runs} | {name: read_metric(root, runs, name) for name in [*names, *more]}
    if absent := [name for name in more if not metrics[name]]:
        raise ReportError(f"argument --metrics: no run has {', '.join(absent)}.")
    title = ", ".join(dict.fromkeys(run.experiment for run in runs))
    metrics = named(without_repeats(metrics))
    return make_page(title, metrics, tables_of(metrics), details, path)


def tables_of(metrics: Mapping[str, Sequence[Run]]) -> dict[str, Table]:
    """The results of every split at the last steps that all seeds of an arm have."""
    tables: dict[str, Table] = {}
    for split, metric in splits_of(metrics).items():
        before = {run.run_id: run for run in metrics.get(f"{metric}_after_0_steps", ())}
        runs = [_with_before(run, before.get(run.run_id)) for run in metrics[metric]]
        rows, remarks = make_rows(by_group(runs))
        tables[_heading(split)] = [_line_of_row(row) for row in rows], remarks
    return tables


def _with_before(run: Run, before: Run | None) -> Run:
    """The run with the returns before adaptation of its own split."""
    fits = before is not None and np.array_equal(before.steps, run.steps)
    return replace(run, before=before.returns if fits and before is not None else None)


def _line_of_row(row: Row) -> Line:
    return Line(
        arm=row.experiment,
        environment=row.environment,
        algorithm=row.algorithm,
        step=row.steps,
        score=row.score,
        interval=row.interval,
        scores=list(row.returns.values()),
        before=row.before,
        published=row.published and row.published.mean,
        same_window=row.same_window,
        minutes=row.minutes,
        commits=row.commits,
        configs=[row.config],
        unfinished=sorted(status.lower() for status in row.statuses.values() if status != "FINISHED"),
    )


def recipe_page(recipe: Recipe, rows: Sequence[Evaluation], root: Path | str, path: Path) -> str:
    """The page of a recipe's record, with the numbers of its other page; what the store still has of its runs is added.

    Args:
        recipe: whose settings are compared.
        rows: of the record.
        root: folder of the store, which may be gone.
        path: where the page will be.

    Raises:
        ReportError: the runs on an environment have no steps in common.
        TrackingError: the store cannot be opened.
    """
    names = names_of(rows, recipe.labels())
    settings = _settings_of(recipe)
    metrics = {
        metric: [
            replace(run, settings=settings.get(run.arm, {}))
            for here in groups_of(rows, names, metric).values()
            for runs in here.values()
            for run in runs
        ]
        for metric in metrics_of(rows)
    }
    details = read_details(root, metrics[RETURN]) if (Path(root) / DATABASE).is_file() else {}
    arms = {split: _arms_of_split(rows, names, metric) for split, metric in splits_of(metrics).items()}
    shown = arms["test"]
    tables = _tables_of_arms(arms, recipe)
    first, (lines, remarks) = next(iter(tables.items()))
    tables[first] = lines, [*remarks, *remarks_on(recipe, shown, rows)]
    return make_page(
        recipe.title.rstrip("."),
        metrics,
        tables,
        details,
        path,
        headline=headline(shown),
        improvements=improvements(shown),
    )


def _arms_of_split(rows: Sequence[Evaluation], names: Mapping[str, Label], metric: str) -> list[Arm]:
    """The arms on another split, as if its returns were the return."""
    prefix = metric.removesuffix("return")
    own = [row for row in rows if row.metric.startswith(metric) or row.metric == DIVERGED]
    return arms_of([row._replace(metric=row.metric.replace(prefix, "eval/", 1)) for row in own], names)


def _tables_of_arms(arms: Mapping[str, Sequence[Arm]], recipe: Recipe) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for split, each in arms.items():
        lines = [_line_of_arm(arm, recipe if split == "test" else None) for arm in each]
        sources = "; ".join(sorted({published.source for published in recipe.published.values()}))
        published = any(line.published is not None for line in lines)
        tables[_heading(split) if len(arms) > 1 else "Each environment"] = (
            lines,
            [f"Published: {sources}."] if published else [],
        )
        if together := _together(each):
            where = f"{_heading(split)} of all" if len(arms) > 1 else "All"
            tables[f"{where} environments, in units of the mean of {each[0].name}"] = together, []
    return tables


def _heading(split: str) -> str:
    return f"{split.replace('_', ' ')} tasks".capitalize()


def _together(arms: Sequence[Arm]) -> list[Line]:
    """Every arm on all environments together, where that makes sense."""
    return [
        Line(
            arm=name,
            environment="all",
            algorithm="",
            step=None,
            score=float(interquartile_mean(np.concatenate(scores))),
            interval=bootstrap_interval(scores) if min(len(each) for each in scores) > 1 else None,
            scores=np.concatenate(scores).tolist(),
            before=None,
            published=None,
            same_window=None,
            minutes=None,
            commits=[],
            configs=[],
        )
        for name, scores in relative(arms).items()
    ]


def _settings_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The settings of every arm that the recipe's files state, by its name in the record."""
    return {
        label(arm, point): {
            name: value
            for name, value in (flat(arm.config) | dict(recipe.overrides) | dict(arm.overrides) | dict(point)).items()
            if not set(name.split(".")) & set(NOT_SETTINGS)
        }
        for arm in recipe.arms
        for point in recipe.points()
    }


def _line_of_arm(arm: Arm, recipe: Recipe | None) -> Line:
    published = recipe.published.get(arm.runs[0].arm) if recipe else None
    return Line(
        arm=arm.name,
        environment=arm.environment,
        algorithm=", ".join(sorted({run.algorithm for run in arm.runs})),
        step=arm.step,
        score=float(interquartile_mean(arm.scores)),
        interval=bootstrap_interval(arm.scores) if len(arm.scores) > 1 else None,
        scores=arm.scores.tolist(),
        before=arm.mean_of(BEFORE),
        published=published.value if published else None,
        same_window=None,
        minutes=float(np.mean([run.minutes(arm.step) for run in arm.runs])),
        commits=sorted({run.commit for run in arm.runs}),
        configs=sorted({run.config for run in arm.runs}),
    )
