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
from lit_metarl.algorithms.off_policy import OffPolicy
from lit_metarl.algorithms.pearl import PEARL
from lit_metarl.algorithms.preconditioned_sac import PreconditionedSAC
from lit_metarl.algorithms.sac import SAC
from lit_metarl.algorithms.td3 import TD3

__all__ = [
    "EMAML",
    "FOMAML",
    "LVC",
    "MAML",
    "PEARL",
    "SAC",
    "SGMRL",
    "TD3",
    "TMAML",
    "TRPOFOMAML",
    "TRPOMAML",
    "ActorCritic",
    "Algorithm",
    "DiCEMAML",
    "MetaPolicyGradient",
    "OffPolicy",
    "PreconditionedSAC",
    "ProMP",
    "ProMPTayPO2",
    "TRPODiCE",
]
