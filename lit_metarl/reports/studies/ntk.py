"""``lit-metarl study ntk``: how a critic's tangent kernel goes on in training, Fig. 3 of Evmorfos & Petropulu 2024.

Of runs that logged it: ``fit … --trainer.callbacks+=lit_metarl.callbacks.NTKMonitor``.
"""

from __future__ import annotations

import argparse

from lit_metarl.reports.section import Section
from lit_metarl.reports.studies.monitored import over_training, parse_metric

METRICS = ("ratio", "diagonal", "effective_rank", "eq7_margin", "eq8_margin")


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings of ``lit-metarl study ntk``."""
    return parse_metric(parser, words, METRICS)


def run(args: argparse.Namespace) -> Section:
    """The metric over training, as a table and as curves.

    Raises:
        ReportError, TrackingError: there is nothing to show.
    """
    return over_training(args, "ntk", "on one fixed batch")
