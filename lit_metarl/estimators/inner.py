"""Inner surrogates as they are written in a config: which estimate of J(θ) an adaptation step differentiates.

Ratios are taken against ``signals.behaviour_log_prob``, so they are right for data of the current policy (ratio 1 with
its derivatives) and over several epochs on the same data. One's own surrogate is one class with one method.

Axes: any leading ones, ``N`` trajectories, ``T`` steps. The equations are those of the functions of
:mod:`lit_metarl.estimators.surrogates` and :mod:`lit_metarl.estimators.off_policy` (Tang et al. 2021, Eq. 3–8).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lit_metarl.estimators import off_policy, surrogates
from lit_metarl.types import Signals, require


class InnerSurrogate(ABC):
    """A differentiable value per trajectory, ``[..., N, T]`` → ``[..., N]``; adaptation ascends its mean over N."""

    @abstractmethod
    def per_trajectory(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """The surrogate, ``[..., N]``, summed over T.

        Args:
            log_prob: log π_θ(a_t|s_t) with its graph, ``[..., N, T]``.
            signals: data, every field ``[..., N, T]``.
            gamma: the true discount.
            discounted: whether advantages at step t are weighted by γ^t, as the gradient of J is; practice drops the
                weight. Surrogates of rewards have no such choice and always discount.
        """

    def per_trajectory_by_dimension(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """The surrogate, ``[..., N]``, where ``signals.dimensions`` says what each action dimension did.

        Called instead of :meth:`per_trajectory` if the baseline depends on actions; a surrogate that makes no use of
        that sums over the dimensions, which is the default.

        Args:
            log_prob: log π_θ(a_t^i|s_t) with its graph, ``[..., N, T, A]``.
            signals: data.
            gamma: as above.
            discounted: likewise.
        """
        return self.per_trajectory(log_prob.sum(-1), signals, gamma, discounted)


def _weight(gamma: float, discounted: bool) -> float:
    return gamma if discounted else 1.0


def _by_dimension(log_prob: Tensor, signals: Signals) -> tuple[Tensor, Tensor]:
    """log ρ_t^i and d_i, both ``[..., N, T, A]``."""
    assert signals.dimensions
    behaviour, effect = signals.dimensions
    return off_policy.log_importance_ratio(log_prob, behaviour, signals.mask[..., None]), effect


def _log_ratio(log_prob: Tensor, signals: Signals) -> Tensor:
    return off_policy.log_importance_ratio(log_prob, signals.behaviour_log_prob, signals.mask)


@dataclass(frozen=True)
class LogLikelihood(InnerSurrogate):
    """Policy gradient as in MAML (Finn et al. 2017), ``[..., N]``. Order 1 unbiased; order 2 lacks products of scores.

    Right for SG-MRL, whose score term accounts for the data; no ratios, so for data of the current policy only.
    """

    def per_trajectory(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """Σ_t γ^t log π_t A_t, ``[..., N]``: :func:`~lit_metarl.estimators.surrogates.log_likelihood`."""
        return surrogates.log_likelihood(log_prob, signals.advantage, signals.mask, _weight(gamma, discounted))


@dataclass(frozen=True)
class LikelihoodRatio(InnerSurrogate):
    """LVC, the inner surrogate of ProMP (Rothfuss et al. 2019), ``[..., N]``: of low variance, unbiased at order 1.

    Order 2 lacks the products of scores of different steps.
    """

    def per_trajectory(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """Σ_t γ^t ρ_t A_t, ``[..., N]``: :func:`~lit_metarl.estimators.surrogates.likelihood_ratio`."""
        log_ratio = _log_ratio(log_prob, signals)
        return surrogates.likelihood_ratio(log_ratio, signals.advantage, signals.mask, _weight(gamma, discounted))


@dataclass(frozen=True)
class DiCE(InnerSurrogate):
    """DiCE (Foerster et al. 2018), ``[..., N]``: unbiased at every order without a critic, at high variance."""

    def per_trajectory(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """Σ_t γ^t (Π_{s≤t} ρ_s) r_t, ``[..., N]``: :func:`~lit_metarl.estimators.surrogates.dice`."""
        return surrogates.dice(_log_ratio(log_prob, signals), signals.reward, signals.mask, gamma)


@dataclass(frozen=True)
class LoadedDiCE(InnerSurrogate):
    """DiCE with advantages (Farquhar et al. 2019), ``[..., N]``; ``decay`` < 1 trades bias of order 2 for variance.

    Attributes:
        decay: λ in [0, 1] of the influence of earlier actions; 1 is unbiased, 0 is LVC.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.decay <= 1, "decay", self.decay, "it must be in [0, 1]")

    def per_trajectory(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """Σ_t γ^t (e^{w_t} − e^{v_t}) A_t, ``[..., N]``: :func:`~lit_metarl.estimators.surrogates.loaded_dice`."""
        weight, log_ratio = _weight(gamma, discounted), _log_ratio(log_prob, signals)
        return surrogates.loaded_dice(log_ratio, signals.advantage, signals.mask, weight, self.decay)


@dataclass(frozen=True)
class DoublyRobust(InnerSurrogate):
    """Doubly robust estimate (Tang et al. 2021, Eq. 3), ``[..., N]``: unbiased at every order; the critic is V."""

    def per_trajectory(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """V_0 + Σ_t γ^t (Π_{s≤t} ρ_s) δ_t, ``[..., N]``: :func:`~lit_metarl.estimators.off_policy.doubly_robust`."""
        return off_policy.doubly_robust(
            _log_ratio(log_prob, signals), signals.reward, signals.value, signals.mask, gamma
        )


@dataclass(frozen=True)
class TruncatedDR(InnerSurrogate):
    """V-trace (Espeholt et al. 2018, Eq. 1), ``[..., N]``: on-policy equal to :class:`DoublyRobust`, else biased.

    Attributes:
        rho_max: bound ρ̄ > 0 of the ratio that multiplies a step's own error.
        c_max: bound c̄ > 0 of the ratios that multiply later errors.
    """

    rho_max: float = 1.0
    c_max: float = 1.0

    def __post_init__(self) -> None:
        require(self.rho_max > 0, "rho_max", self.rho_max, "it must be above 0")
        require(self.c_max > 0, "c_max", self.c_max, "it must be above 0")

    def per_trajectory(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """V-trace v_0, ``[..., N]``: :func:`~lit_metarl.estimators.off_policy.truncated_doubly_robust`."""
        return off_policy.truncated_doubly_robust(
            _log_ratio(log_prob, signals), signals.reward, signals.value, signals.mask, gamma, self.rho_max, self.c_max
        )


@dataclass(frozen=True)
class TayPO(InnerSurrogate):
    """Taylor expansion of J in π − μ (Tang et al. 2021, Eq. 6), ``[..., N]``. On-policy unbiased up to ``order``.

    Attributes:
        order: K ≥ 1 of the expansion; 1 is LVC, 2 has the right Hessian.
    """

    order: int = 2

    def __post_init__(self) -> None:
        require(self.order >= 1, "order", self.order, "an expansion has at least order 1")

    def per_trajectory(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """Σ_{k≤K} U_k, ``[..., N]``: :func:`~lit_metarl.estimators.off_policy.taypo`."""
        weight, log_ratio = _weight(gamma, discounted), _log_ratio(log_prob, signals)
        return off_policy.taypo(log_ratio, signals.advantage, signals.mask, weight, self.order)


@dataclass(frozen=True)
class TMAML(InnerSurrogate):
    """DiCE with control variates (Liu et al. 2019, Eq. 7 put right), ``[..., N]``; unbiased, less variance.

    With a baseline that depends on actions, such as :class:`~lit_metarl.nn.ActionDependentLinear`, they are those of
    :func:`~lit_metarl.estimators.surrogates.anova`; otherwise those of the state.

    Attributes:
        eq7_printed: the control variate as the paper prints it: a biased Hessian of more variance than DiCE's.
    """

    eq7_printed: bool = False

    def per_trajectory(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """DiCE + Σ_t γ^t (Π_{s<t} ρ_s)(1 − ρ_t) b_t, ``[..., N]``: :func:`~lit_metarl.estimators.surrogates.tmaml`."""
        log_ratio = _log_ratio(log_prob, signals)
        return surrogates.tmaml(log_ratio, signals.reward, signals.value, signals.mask, gamma, self.eq7_printed)

    def per_trajectory_by_dimension(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """The action-dependent control variates, ``[..., N]``: :func:`~lit_metarl.estimators.surrogates.anova`."""
        if self.eq7_printed:  # which has states only
            return super().per_trajectory_by_dimension(log_prob, signals, gamma, discounted)
        log_ratio, effect = _by_dimension(log_prob, signals)
        return surrogates.anova(log_ratio, signals.reward, signals.value, effect, signals.mask, gamma)


@dataclass(frozen=True)
class OrderedTMAML(TMAML):
    """TMAML whose action-dependent baselines take the dimensions in order, ``[..., N]``; unbiased.

    With a baseline of states alone it is :class:`TMAML` (Liu et al. 2019, Eq. 11; Wu et al. 2018).
    """

    def per_trajectory_by_dimension(self, log_prob: Tensor, signals: Signals, gamma: float, discounted: bool) -> Tensor:
        """Control variates b_i(s, a^{−i}), ``[..., N]``: :func:`~lit_metarl.estimators.surrogates.ordered`."""
        log_ratio, effect = _by_dimension(log_prob, signals)
        baseline = signals.value[..., None] + effect.sum(-1, keepdim=True) - effect
        return surrogates.ordered(log_ratio, signals.reward, baseline, signals.mask, gamma)
