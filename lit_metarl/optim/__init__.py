"""Optimization of parameters that are values: adaptation, its corrections, outer updates, trust regions."""

from lit_metarl.optim.conjugate_gradient import conjugate_gradient
from lit_metarl.optim.corrections import EMAMLCorrection, NoCorrection, SamplingCorrection, SGMRLCorrection
from lit_metarl.optim.inner_loop import InnerLoop, Unrolled
from lit_metarl.optim.outer_updates import PPO, TRPO, VPG, OuterUpdate
from lit_metarl.optim.trust_region import TrustRegionStep, hessian_vector_product, trust_region_step

__all__ = [
    "PPO",
    "TRPO",
    "VPG",
    "EMAMLCorrection",
    "InnerLoop",
    "NoCorrection",
    "OuterUpdate",
    "SGMRLCorrection",
    "SamplingCorrection",
    "TrustRegionStep",
    "Unrolled",
    "conjugate_gradient",
    "hessian_vector_product",
    "trust_region_step",
]
