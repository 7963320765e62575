"""Measurements of networks and of gradients: pure functions of tensors."""

from lit_metarl.diagnostics.ntk import (
    ContractionMargins,
    Margin,
    contraction_margins,
    effective_rank,
    exact_kernel,
    ntk_ratio,
    sketched_kernel,
    spectrum,
)

__all__ = [
    "ContractionMargins",
    "Margin",
    "contraction_margins",
    "effective_rank",
    "exact_kernel",
    "ntk_ratio",
    "sketched_kernel",
    "spectrum",
]
