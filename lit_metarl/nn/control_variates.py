"""Action-dependent baselines b_i(s, a^{−i}) of factorised policies, the per-task control variates of TMAML.

b_i is the critic with coordinate i of the action averaged out by the policy (Liu et al. 2019, Eq. 11; Wu et al. 2018,
"Variance reduction for policy gradient with action-dependent factorized baselines"). A critic that is additive over
coordinates, Q = V(s) + Σ_i d_i(s, a^i) with E_{a^i} d_i = 0, has b_i = V + Σ_{j≠i} d_j.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_metarl.nn.baselines import OBS_LIMIT, Baseline, BaselineFactory, check_ridge, solve_ridge, time_features
from lit_metarl.nn.distributions import DiagonalGaussian
from lit_metarl.types import Sizes, Trajectories, require


class ActionDependentBaseline(Baseline):
    """b(s_t) and what each coordinate of the action adds to it."""

    def predict_by_dimension(self, trajectories: Trajectories, returns: Tensor, policy: Any) -> tuple[Tensor, Tensor]:
        """V(s_t) ``[B, N, T]`` and d_i(s_t, a_t^i) ``[B, N, T, A]`` without a graph, 0 where the mask is 0.

        d_i must not depend on the other coordinates, nor, like V, on the trajectory's own actions in any other way.

        Args:
            trajectories: one round, fields ``[B, N, T, ...]``.
            returns: the discounted reward-to-go, ``[B, N, T]``.
            policy: the distribution that acted, fields ``[B, N, T, A]``.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ActionDependentLinear(BaselineFactory):
    """Q of every task by ridge regression on [s, s², t, t², t³, 1, a, a², s·a], and its b_i in closed form.

    Under a Gaussian policy a_i averages to μ_i and a_i² to μ_i² + σ_i². O + O + 4 + A·(O + 2) features: 176 for
    half-cheetah, a thousand for the ant, where ``interactions: false`` leaves s·a out. Where one action moves the
    return of a hundred steps by little, effects are mostly noise, hence their own ridge. Half-cheetah forwards or
    backwards, initial policy, held-out share of the returns' variance at N = 10 (20): V .41 (.53), as a linear state
    baseline, V and effects .39 (.52), with the ridge of V for both .37 (.52) and .20 (.48).

    Attributes:
        ridge: λ of |Xw − y|² + λ|w|² for the weights of state and time; observations are clipped to ±10 before.
        action_ridge: the same for the weights of the action, whose influence is small and its features many.
        folds: parts of a task's trajectories, each predicted by a fit to the other parts; 1 fits all to all, which
            makes b_i depend on the very actions it must not see.
        interactions: whether s·a, all products of an observation's and an action's entries, are features.
    """

    ridge: float = 1e-3
    action_ridge: float = 100.0
    folds: int = 5
    interactions: bool = True

    def __post_init__(self) -> None:
        check_ridge(self.ridge)
        check_ridge(self.action_ridge, "action_ridge")
        require(self.folds >= 1, "baseline.folds", self.folds, "it must be at least 1")

    def build(self, sizes: Sizes) -> Baseline:
        remedy = "its averages over actions are those of a Gaussian; use LinearFeature for discrete actions"
        require(sizes.num_actions is None, "model.baseline", "ActionDependentLinear", remedy)
        return FittedCritic(self)


class FittedCritic(ActionDependentBaseline):
    """The module of an :class:`ActionDependentLinear` baseline, fitted to every task's every round anew.

    Args:
        formula: its settings.
    """

    def __init__(self, formula: ActionDependentLinear) -> None:
        super().__init__()
        self.formula = formula

    @torch.no_grad()
    def predict_by_dimension(
        self, trajectories: Trajectories, returns: Tensor, policy: DiagonalGaussian
    ) -> tuple[Tensor, Tensor]:
        """V ``[B, N, T]`` and d_i ``[B, N, T, A]`` of the regression."""
        action, mean, variance = trajectories.action.double(), policy.mean.double(), (2 * policy.log_std).exp().double()
        obs = trajectories.obs.double().clamp(-OBS_LIMIT, OBS_LIMIT)
        state = torch.cat([obs, obs.square(), time_features(returns)], dim=-1)
        mask = trajectories.mask.double().unsqueeze(-1)
        powers = torch.stack([action, action.square()], dim=-1)  # [B, N, T, A, 2]
        averages = torch.stack([mean, mean.square() + variance], dim=-1)
        weights = self._fit(mask * torch.cat([state, self._of_actions(obs, powers)], dim=-1), returns.double())
        value = (torch.cat([state, self._of_actions(obs, averages)], dim=-1) * weights).sum(-1)
        effect = self._by_coordinate(obs, powers - averages, weights[..., state.shape[-1] :])
        return (value * mask[..., 0]).to(returns.dtype), (effect * mask).to(returns.dtype)

    def _of_actions(self, obs: Tensor, powers: Tensor) -> Tensor:
        """[a, a², s·a], coordinate after coordinate, ``[B, N, T, A·F]``."""
        return self._features(obs, powers).flatten(-2)

    def _features(self, obs: Tensor, powers: Tensor) -> Tensor:
        """[a_i, a_i², s·a_i] of each coordinate, ``[B, N, T, A, F]``; linear in ``powers [B, N, T, A, 2]``."""
        shrunk = powers * (self.formula.ridge / self.formula.action_ridge) ** 0.5  # one ridge for all is two
        if not self.formula.interactions:
            return shrunk
        return torch.cat([shrunk, shrunk[..., :1] * obs.unsqueeze(-2)], dim=-1)

    def _by_coordinate(self, obs: Tensor, excess: Tensor, weights: Tensor) -> Tensor:
        """d_i, linear in a_i − E a_i and a_i² − E a_i²; ``[B, N, T, A]``."""
        features = self._features(obs, excess)
        return (features * weights.unflatten(-1, features.shape[-2:])).sum(-1)

    def _fit(self, features: Tensor, returns: Tensor) -> Tensor:
        """Weights ``[B, N, 1, F]`` of every trajectory, from those it may be fitted on."""
        B, N, _, F = features.shape
        fold = torch.arange(N, device=features.device) % self.formula.folds
        gram, moment = _sums(features, returns)
        weights = features.new_zeros(B, N, 1, F)
        for part in fold.unique().tolist():
            own = fold == part
            if self.formula.folds == 1:
                solution = solve_ridge(gram, moment, self.formula.ridge)
            else:  # all the others: sums without their own part; of one trajectory alone nothing is left
                own_gram, own_moment = _sums(features[:, own], returns[:, own])
                solution = solve_ridge(gram - own_gram, moment - own_moment, self.formula.ridge)
            weights[:, own] = solution.mT.unsqueeze(1)
        return weights


def _sums(features: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
    """XᵀX ``[B, F, F]`` and Xᵀy ``[B, F, 1]`` over trajectories and steps."""
    x = features.flatten(1, 2)
    return x.mT @ x, x.mT @ returns.flatten(1, 2).unsqueeze(-1)
