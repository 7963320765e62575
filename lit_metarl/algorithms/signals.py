"""From a round of experience to what estimators read of it."""

from __future__ import annotations

from typing import Any

from lit_metarl.estimators import gae, normalise, reward_to_go
from lit_metarl.nn import ActionDependentBaseline, Baseline
from lit_metarl.types import Dimensions, Signals, Trajectories


def signals_of(
    trajectories: Trajectories, baseline: Baseline, policy: Any, gamma: float, gae_lambda: float, normalised: bool
) -> Signals:
    """A round as estimators see it: baseline predicted, advantages estimated and normalised; ``[B, N, T]``.

    Args:
        trajectories: fields ``[B, N, T, ...]``.
        baseline: b(s_t), of the actions too if it is an
            :class:`~lit_metarl.nn.control_variates.ActionDependentBaseline`.
        policy: the distribution that acted, fields ``[B, N, T, ...]``; read by such a baseline only.
        gamma: γ.
        gae_lambda: λ.
        normalised: advantages have mean 0 and deviation 1 per task; rewards and baseline are divided by the same
            deviation, so that all terms of an objective keep one unit.
    """
    reward, mask = trajectories.reward, trajectories.mask
    returns = reward_to_go(reward, mask, gamma)
    log_prob = effect = None
    if isinstance(baseline, ActionDependentBaseline):
        value, effect = baseline.predict_by_dimension(trajectories, returns, policy)
        log_prob = policy.dimension_log_prob(trajectories.action) * mask[..., None]
    else:
        value = baseline.predict(trajectories, returns)
    advantage = gae(reward, value, mask, gamma, gae_lambda)
    if normalised:
        advantage, scale = normalise(advantage, mask)
        reward, value = reward / scale[..., None, None], value / scale[..., None, None]
        effect = None if effect is None else effect / scale[..., None, None, None]
    dimensions = () if log_prob is None or effect is None else Dimensions(log_prob, effect)
    return Signals(trajectories.log_prob, reward, value, advantage, mask, dimensions)
