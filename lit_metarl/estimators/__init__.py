"""Estimators of J(θ) and of its derivatives from trajectories: pure functions of tensors, and strategies for configs.

Tang et al. 2021, "Unifying Gradient Estimators for Meta-Reinforcement Learning via Off-Policy Evaluation".
"""

from lit_metarl.estimators.inner import (
    TMAML,
    DiCE,
    DoublyRobust,
    InnerSurrogate,
    LikelihoodRatio,
    LoadedDiCE,
    LogLikelihood,
    OrderedTMAML,
    TayPO,
    TruncatedDR,
)
from lit_metarl.estimators.off_policy import (
    doubly_robust,
    log_importance_ratio,
    step_wise_is,
    taypo,
    truncated_doubly_robust,
)
from lit_metarl.estimators.returns import (
    discounted_suffix_sum,
    discounts,
    following_value,
    gae,
    normalise,
    reward_to_go,
)
from lit_metarl.estimators.surrogates import (
    anova,
    clipped_ratio,
    dice,
    likelihood_ratio,
    loaded_dice,
    log_likelihood,
    ordered,
    tmaml,
)

__all__ = [
    "TMAML",
    "DiCE",
    "DoublyRobust",
    "InnerSurrogate",
    "LikelihoodRatio",
    "LoadedDiCE",
    "LogLikelihood",
    "OrderedTMAML",
    "TayPO",
    "TruncatedDR",
    "anova",
    "clipped_ratio",
    "dice",
    "discounted_suffix_sum",
    "discounts",
    "doubly_robust",
    "following_value",
    "gae",
    "likelihood_ratio",
    "loaded_dice",
    "log_importance_ratio",
    "log_likelihood",
    "normalise",
    "ordered",
    "reward_to_go",
    "step_wise_is",
    "taypo",
    "tmaml",
    "truncated_doubly_robust",
]
