"""Algorithms: one LightningModule each."""

from lit_metarl.algorithms.actor_critic import ActorCritic
from lit_metarl.algorithms.base import Algorithm
from lit_metarl.algorithms.maml import (
    EMAML,
    FOMAML,
    LVC,
    MAML,
    SGMRL,
    TMAML,
    TRPOFOMAML,
    TRPOMAML,
    DiCEMAML,
    ProMP,
    ProMPTayPO2,
    TRPODiCE,
)
from lit_metarl.algorithms.meta_policy_gradient import MetaPolicyGradient
from lit_metarl.algorithms.preconditioned_sac import PreconditionedSAC
from lit_metarl.algorithms.sac import SAC

__all__ = [
    "EMAML",
    "FOMAML",
    "LVC",
    "MAML",
    "SAC",
    "SGMRL",
    "TMAML",
    "TRPOFOMAML",
    "TRPOMAML",
    "ActorCritic",
    "Algorithm",
    "DiCEMAML",
    "MetaPolicyGradient",
    "PreconditionedSAC",
    "ProMP",
    "ProMPTayPO2",
    "TRPODiCE",
]
