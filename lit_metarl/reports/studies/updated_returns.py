"""``lit-metarl study updated_returns``: what one outer update is worth, from the same checkpoint again and again.

Fig. 5 of Sarafian et al. 2021: every update is on a meta-batch of its own, and the distribution of the returns after it
says how much an update owes to chance. All are evaluated on the same tasks, from the same streams, so that an update
that changes nothing has the very return of the checkpoint.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lit_metarl.checkpoint import read_checkpoint, run_name
from lit_metarl.reports.arguments import at_least, writable_file
from lit_metarl.reports.section import Section, blank_figure, markdown_table, percent
from lit_metarl.reports.studies.gradient_quality import StoredRun, load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = Path("mlruns/figures/updated_returns.png")


class Updated(NamedTuple):
    """Returns around one checkpoint, each a mean over the tasks and episodes of ``test``.

    Attributes:
        label: of the checkpoint.
        start: ``[K + 1]`` of the checkpoint after 0 … K adaptation steps.
        updated: ``[R, K + 1]`` after one outer update on each of R meta-batches.
    """

    label: str
    start: Tensor
    updated: Tensor


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study updated_returns``."""
    add = parser.add_argument
    add("checkpoints", metavar="CHECKPOINT", type=Path, nargs="+", help="files of runs of the MAML family")
    several = at_least(2, "one is no distribution")
    add("--updates", type=several, default=50, help="R, each on a meta-batch of its own (%(default)s)")
    add("--figure", metavar="FILE", type=writable_file, default=FIGURE, help="(%(default)s)")
    add("--json", metavar="FILE", type=writable_file, help="the return after every update")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> Section:
    """The distribution of returns after an update of every checkpoint.

    Raises:
        ReportError, CheckpointError, ConfigError: a file is no checkpoint of a run of the family in one process.
    """
    from lit_metarl.cli import quieten

    quieten()
    found = [measure(path, args.updates) for path in args.checkpoints]
    head = ["checkpoint", "before adaptation", "updated", "better", "after adaptation", "updated", "better"]
    lines = [[each.label, *_cells(each, 0), *_cells(each, -1)] for each in found]
    note = f"""\
Mean return over the test tasks, at the checkpoint and after one outer update from it: mean ± standard deviation over \
{args.updates} updates, each on the next meta-batch of the run's own streams, and the share of updates with a higher \
return than the checkpoint. Tasks, start states and the streams of actions of the evaluation are the same throughout."""
    data = {
        str(path): {"label": each.label, "start": each.start.tolist(), "updated": each.updated.tolist()}
        for path, each in zip(args.checkpoints, found, strict=True)
    }
    return Section(markdown_table(head, lines, numbers=True), [note], {args.figure: draw(found)}, data)


def _cells(found: Updated, step: int) -> list[str]:
    start, updated = found.start[step], found.updated[:, step]
    better = percent(float((updated > start).float().mean()))
    return [f"{float(start):.2f}", f"{float(updated.mean()):.2f} ± {float(updated.std(correction=1)):.2f}", better]


def measure(path: Path, count: int) -> Updated:
    """Returns around the checkpoint ``path`` after each of ``count`` updates of it."""
    stored = load_run(path)
    start = _returns(stored)
    updated = [_returns(each) for each in islice(updates(path), count)]
    return Updated(_label(path), start, torch.stack(updated))


def updates(path: Path) -> Iterator[StoredRun]:
    """The run after one outer update from its checkpoint, on one meta-batch after the other, without end.

    The first is the update that training would make next: tasks, simulators, streams, the optimizer's state and that of
    the outer update are the checkpoint's. It is the same module every time.
    """
    stored, checkpoint = load_run(path), read_checkpoint(path)
    module, data = stored.module, stored.datamodule
    data.bind(module)
    data.setup("fit")
    experience = checkpoint[type(data).__qualname__]
    data.check_state(experience)
    data.load_experience_state(experience["ranks"][0]["experience"])
    initial, counters = copy.deepcopy(module.state_dict()), checkpoint["algorithm"]["counters"]
    while True:
        module.load_counters(copy.deepcopy(counters))
        optimizer = module.outer.optimizer(list(module.meta_parameters().values()))
        if optimizer is not None:
            optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer_states"][0]))
        batch = data.next_batch()
        module.outer.update(module.iteration(batch.rounds, batch.adaptations, optimizer))
        yield stored
        module.load_state_dict(initial)


def _returns(stored: StoredRun) -> Tensor:
    """Mean returns on the test tasks after 0 … K adaptation steps, ``[K + 1]``."""
    stored.datamodule.bind(stored.module)
    return stored.datamodule.test().returns["test"].mean((1, 2))


def _label(path: Path) -> str:
    """The name of the run, if it has one, and the environment steps of the checkpoint."""
    checkpoint = read_checkpoint(path)
    return f"{run_name(checkpoint) or path}, {checkpoint['algorithm']['counters']['env_steps']:,} steps"


def draw(found: Sequence[Updated]) -> Figure:
    """Every updated return, their box, and the checkpoint's own, before and after adaptation."""
    figure = blank_figure(10, 1.6 + 0.6 * len(found))
    panels = figure.subplots(1, 2, sharey=True)
    for axis, (step, title) in zip(panels, ((0, "before adaptation"), (-1, "after adaptation")), strict=True):
        rows = [each.updated[:, step].tolist() for each in found]
        axis.boxplot(rows, orientation="horizontal", showfliers=False, medianprops={"color": "tab:blue"})
        for place, (row, each) in enumerate(zip(rows, found, strict=True), start=1):
            spread = torch.linspace(-0.25, 0.25, len(row)).tolist()
            axis.scatter(row, [place + offset for offset in spread], s=6, alpha=0.5, color="tab:blue", linewidths=0)
            ends = place - 0.35, place + 0.35
            axis.vlines(float(each.start[step]), *ends, color="tab:orange", label=None if place > 1 else "checkpoint")
        axis.set(title=title, xlabel="return after one outer update")
    panels[0].set_yticks(range(1, len(found) + 1), [each.label for each in found])
    panels[0].invert_yaxis()
    panels[1].legend(fontsize="small")
    return figure
