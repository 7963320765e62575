"""``lit-metarl study NAME``: measurements of the methods themselves."""

from __future__ import annotations

import argparse
from importlib import import_module

STUDIES = {  # name → module and what it measures
    "estimators": ("lit_metarl.reports.estimator_study", "bias and variance of estimated gradients and Hessians"),
    "meta_gradient": ("lit_metarl.reports.meta_gradient_study", "bias and variance of estimated meta-gradients"),
    "ntk": ("lit_metarl.reports.ntk_study", "tangent kernel over training, of runs that logged it"),
    "preconditioning": ("lit_metarl.reports.preconditioning_study", "meta-updates and a critic's tangent kernel"),
    "tabular": ("lit_metarl.reports.tabular_study", "accuracy of off-policy estimates, Fig. 1 of Tang et al. 2021"),
}


def fraction(text: str) -> float:
    """Parser type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def main(arguments: list[str]) -> int:
    """Run the study that the first argument names with the others; exits with code 2 if there is none."""
    names = "\n".join(f"  {name:<17}{what}" for name, (_, what) in STUDIES.items())
    parser = argparse.ArgumentParser(
        "lit-metarl study",
        description=f"Measure a method.\n\nstudies:\n{names}\n\n`lit-metarl study NAME --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=STUDIES, help="which study")
    name = parser.parse_args(arguments[:1]).name
    return import_module(STUDIES[name][0]).main(arguments[1:])
