"""Optimization of parameters that are values: adaptation, its corrections, outer updates, trust regions."""

from lit_metarl.optim.conjugate_gradient import conjugate_gradient
from lit_metarl.optim.corrections import (
    CrossTask,
    EMAMLCorrection,
    LeaveOneOut,
    LinearisedLeaveOneOut,
    NoCorrection,
    Plain,
    SamplingCorrection,
)
from lit_metarl.optim.inner_loop import InnerLoop, Unrolled
from lit_metarl.optim.iteration import Iteration
from lit_metarl.optim.outer_updates import PPO, TRPO, VPG, OuterUpdate
from lit_metarl.optim.trust_region import TrustRegionStep, trust_region_step

__all__ = [
    "PPO",
    "TRPO",
    "VPG",
    "CrossTask",
    "EMAMLCorrection",
    "InnerLoop",
    "Iteration",
    "LeaveOneOut",
    "LinearisedLeaveOneOut",
    "NoCorrection",
    "OuterUpdate",
    "Plain",
    "SamplingCorrection",
    "TrustRegionStep",
    "Unrolled",
    "conjugate_gradient",
    "trust_region_step",
]
