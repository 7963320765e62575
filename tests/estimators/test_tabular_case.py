"""One random MDP with derivatives from an independent implementation: ``tabular_case.npz``.

10 states, 5 actions, γ = 0.8, 50 trajectories of 20 steps of the uniform policy, ratios π/(μ + 1e-8), a noisy critic.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import jacrev, vmap
from torch.testing import assert_close

from lit_metarl.envs.tabular import TabularMDP
from lit_metarl.envs.tabular_exact import exact_derivatives
from lit_metarl.estimators import doubly_robust, gae, step_wise_is, taypo, truncated_doubly_robust

GAMMA = 0.8
ESTIMATES = {  # of log-ratio, reward, value, bootstrap and mask
    "is": lambda x, r, v, b, m: step_wise_is(x, r, m, GAMMA),
    "dr": lambda x, r, v, b, m: doubly_robust(x, r, v, m, GAMMA, b),
    "trunc_dr": lambda x, r, v, b, m: truncated_doubly_robust(x, r, v, m, GAMMA, 1.0, 1.0, b),
    "taypo1": lambda x, r, v, b, m: taypo(x, gae(r, v, m, GAMMA, 1.0, b), m, GAMMA, 1),
}


@pytest.fixture(scope="module")
def case():
    with np.load(Path(__file__).with_name("tabular_case.npz")) as stored:
        return {key: torch.as_tensor(stored[key]) for key in stored.files}


def test_exact_derivatives(case):
    transition = case["P"].permute(1, 0, 2).numpy()
    mdp = TabularMDP(transition, case["R"].numpy(), np.eye(10)[0])
    exact = exact_derivatives(mdp, case["params"], GAMMA)
    for mine, key in zip(exact, ("oracle_value", "oracle_grad", "oracle_hess"), strict=True):
        assert_close(mine, case[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ESTIMATES)
def test_estimates(case, name):
    behaviour = (case["mu"] + 1e-8).log()

    def estimate(theta, state, action, reward):
        here = state[:-1]
        log_ratio = torch.log_softmax(theta, -1)[here, action] - behaviour[here, action]
        parts = (part[None] for part in (log_ratio, reward, case["V"][here], case["V"][state][-1]))
        return ESTIMATES[name](*parts, torch.ones(1, 20)).sum()

    data = case["states"], case["actions"], case["rewards"]
    for function, key in ((estimate, "value"), (jacrev(estimate), "grad"), (jacrev(jacrev(estimate)), "hess")):
        mine = vmap(function, (None, 0, 0, 0), chunk_size=25)(case["params"], *data).mean(0)
        assert_close(mine, case[f"{name}_{key}"], rtol=1e-6, atol=1e-6)
