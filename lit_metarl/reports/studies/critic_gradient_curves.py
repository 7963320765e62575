"""``lit-metarl study critic_gradient_curves``: how critics lead their actors in training, Sarafian et al. 2021, Fig. 3.

Of runs that logged it: ``fit … --trainer.callbacks+=lit_metarl.callbacks.CriticGradientMonitor``.
"""

from __future__ import annotations

import argparse

from lit_metarl.reports.section import Section
from lit_metarl.reports.studies.monitored import over_training, parse_metric

METRICS = ("cosine", "above_quarter", "above_three_quarters", "r_squared")


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study critic_gradient_curves``."""
    return parse_metric(parser, words, METRICS)


def run(args: argparse.Namespace) -> Section:
    """The metric over training, as a table and as curves.

    Raises:
        ReportError, TrackingError: there is nothing to show.
    """
    return over_training(args, "critic_gradient", "at the monitor's states")
