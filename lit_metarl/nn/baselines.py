"""State-value baselines; those here are fitted per task in closed form, all tasks at once, anew on every round.

A baseline leaves a policy gradient unbiased if it does not depend on the actions whose log-probabilities it multiplies.
Fitted on the very trajectories that it is applied to, it depends on them, by O(features / samples). ``held_out`` fits
the baseline of every trajectory on the *other* trajectories of its task instead, which removes the dependence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_metarl.types import Sizes, Trajectories, require

OBS_LIMIT = 10.0  # observations are clipped to ± this, so that one outlier's square does not own the fit
TIME_SCALE = 100.0
RIDGE_ATTEMPTS = 6  # the given ridge, then five times ten times more


class Baseline(nn.Module):
    """b(s_t) of the policies that collected a round, which an estimator subtracts; the training module owns it.

    Attributes:
        steps: of its optimizer on every batch, after the outer update.
    """

    steps: int = 1

    def predict(self, trajectories: Trajectories, returns: Tensor) -> Tensor:
        """b(s_t) ``[B, N, T]`` without a graph, in the dtype of ``returns``; 0 where the mask is 0.

        Args:
            trajectories: one round, fields ``[B, N, T, ...]``. Entries with mask 0 have no influence, if finite.
            returns: the discounted reward-to-go, ``[B, N, T]``.
        """
        raise NotImplementedError

    def loss(self, trajectories: Trajectories, returns: Tensor) -> Tensor:
        """Scalar to minimise on a round, after the outer update that used its predictions; only where one is learned.

        Learned before, the baseline would depend on the very actions whose log-probabilities it multiplies.
        """
        raise NotImplementedError

    def optimizer(self) -> torch.optim.Optimizer | None:
        """Optimizer of the parameters; None if nothing is learned."""
        return None


class BaselineFactory(ABC):
    """A baseline as it is written in a config: a frozen dataclass with this one method."""

    @abstractmethod
    def build(self, sizes: Sizes) -> Baseline:
        """Module for observations, actions and contexts of these sizes."""


class ClosedForm(BaselineFactory):
    """A baseline that is fitted to every task's every round anew and learns nothing from one to the next."""

    def build(self, sizes: Sizes) -> Baseline:
        return Fitted(self)

    @abstractmethod
    def fit_predict(self, obs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """b(s_t) ``[B, N, T]``: every task's baseline, fitted on its own trajectories and evaluated on them.

        Args:
            obs: ``[B, N, T, O]``.
            returns: regression target ``[B, N, T]``, the discounted reward-to-go.
            mask: ``[B, N, T]``, 1 where a step was taken.
        """


class Fitted(Baseline):
    """The module of a :class:`ClosedForm` baseline.

    Args:
        formula: what fits and evaluates.
    """

    def __init__(self, formula: ClosedForm) -> None:
        super().__init__()
        self.formula = formula

    def predict(self, trajectories: Trajectories, returns: Tensor) -> Tensor:
        """b(s_t) ``[B, N, T]`` of the formula, fitted on this very round."""
        return self.formula.fit_predict(trajectories.obs, returns, trajectories.mask)


@dataclass(frozen=True)
class LinearFeature(ClosedForm):
    """Ridge regression on [obs, obs², t, t², t³, 1], t = step/100 (Duan et al. 2016, "Benchmarking Deep RL …").

    Attributes:
        ridge: λ of |Xw − y|² + λ|w|², the bias included; observations are clipped to ±10 before.
        held_out: fit the baseline of a trajectory on the task's other trajectories; 0 where there is none.
    """

    ridge: float = 1e-5
    held_out: bool = False

    def __post_init__(self) -> None:
        check_ridge(self.ridge)

    @torch.no_grad()
    def fit_predict(self, obs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """Predictions ``[B, N, T]`` of the regression on observation and time."""
        clipped = obs.double().clamp(-OBS_LIMIT, OBS_LIMIT)
        features = torch.cat([clipped, clipped.square(), time_features(returns)], dim=-1)
        return _ridge_regression(features, returns, mask, self.ridge, self.held_out)


@dataclass(frozen=True)
class LinearTime(ClosedForm):
    """Ridge regression on [t, t², t³, 1], t = step/100: a smooth function of time alone.

    Attributes:
        ridge: λ of |Xw − y|² + λ|w|².
        held_out: fit the baseline of a trajectory on the task's other trajectories; 0 where there is none.
    """

    ridge: float = 1e-5
    held_out: bool = False

    def __post_init__(self) -> None:
        check_ridge(self.ridge)

    @torch.no_grad()
    def fit_predict(self, obs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """Predictions ``[B, N, T]`` of the regression on time; ``obs`` is not read."""
        return _ridge_regression(time_features(returns), returns, mask, self.ridge, self.held_out)


@dataclass(frozen=True)
class TimeMean(ClosedForm):
    """Mean of the returns over the trajectories that are still running at step t.

    Attributes:
        held_out: leave the trajectory's own return out; 0 where no other trajectory is running.
    """

    held_out: bool = False

    @torch.no_grad()
    def fit_predict(self, obs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """Mean over trajectories of the return from every step on, ``[B, N, T]``; ``obs`` is not read."""
        count = mask.double()
        total = returns.double() * count
        sums, counts = total.sum(1, keepdim=True), count.sum(1, keepdim=True)
        if self.held_out:
            sums, counts = sums - total, counts - count
        return (count * sums / counts.clamp(min=1.0)).to(returns.dtype)


@dataclass(frozen=True)
class NoBaseline(ClosedForm):
    """No baseline: b = 0 at every step."""

    def fit_predict(self, obs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """The baseline 0 of every step, ``[B, N, T]``."""
        return torch.zeros_like(returns)


def check_ridge(ridge: float, key: str = "ridge") -> None:
    """Raise :class:`~lit_metarl.types.ConfigError` unless ``ridge``, the setting ``key``, is positive."""
    require(ridge > 0.0, key, ridge, "features can be collinear, and then only a positive ridge has a solution")


def time_features(returns: Tensor) -> Tensor:
    """[t, t², t³, 1] with t = step/100 from 0, ``[B, N, T, 4]`` float64."""
    t = torch.arange(returns.shape[-1], dtype=torch.float64, device=returns.device) / TIME_SCALE
    return torch.stack([t, t**2, t**3, torch.ones_like(t)], dim=-1).expand(*returns.shape, 4)


def _ridge_regression(features: Tensor, returns: Tensor, mask: Tensor, ridge: float, held_out: bool) -> Tensor:
    """Predictions x·w with w = (XᵀX + ridge·I)⁻¹ Xᵀy, in float64: ``[B, N, T, F], [B, N, T] → [B, N, T]``.

    XᵀX is a sum over trajectories, so leaving one out is subtracting its own term.
    """
    x = features * mask.double().unsqueeze(-1)
    gram, moment = x.mT @ x, x.mT @ returns.double().unsqueeze(-1)  # [B, N, F, F], [B, N, F, 1]
    total_gram, total_moment = gram.sum(1, keepdim=True), moment.sum(1, keepdim=True)
    if held_out:
        weights = solve_ridge(total_gram - gram, total_moment - moment, ridge)
    else:
        weights = solve_ridge(total_gram, total_moment, ridge)
    return (x @ weights).squeeze(-1).to(returns.dtype)


def solve_ridge(gram: Tensor, moment: Tensor, ridge: float) -> Tensor:
    """w of (gram + ridge·I) w = moment, batched; ten times the ridge wherever rounding made a system indefinite.

    Systems that stay indefinite have w = 0.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    strength = torch.full(gram.shape[:-2], ridge, dtype=gram.dtype, device=gram.device)
    for _ in range(RIDGE_ATTEMPTS):
        factor, info = torch.linalg.cholesky_ex(gram + strength[..., None, None] * identity)
        failed = info > 0
        if not failed.any():
            break
        strength = torch.where(failed, 10.0 * strength, strength)
    solution = torch.cholesky_solve(moment, torch.where(failed[..., None, None], identity, factor))
    return torch.where(failed[..., None, None], 0.0, solution)
