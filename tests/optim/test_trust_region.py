"""The trust-region step: natural direction, rejection without a trace, agreement of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad

from lit_metarl.nn import GaussianMLP
from lit_metarl.nn.distributions import Categorical, DiagonalGaussian
from lit_metarl.optim import TrustRegionStep
from lit_metarl.optim import trust_region_step as trust_region_step_of
from lit_metarl.types import Params, Sizes

Scalar = Callable[[Params], Tensor]
START = {"mean": torch.tensor([0.0, 0.0], dtype=torch.float64), "log_std": torch.zeros(2, dtype=torch.float64)}


def hessian_vector_product(kl: Scalar, params: Params) -> Callable[[Params], Params]:
    """Products with ∇²kl at ``params`` by a second backward pass."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        slope = torch.autograd.grad(kl(leaves), list(leaves.values()), create_graph=True, materialize_grads=True)

    def product(vector: Params) -> Params:
        pairs = [(y, v) for y, v in zip(slope, vector.values(), strict=True) if y.requires_grad]
        y, v = zip(*pairs, strict=True)
        curved = torch.autograd.grad(y, list(leaves.values()), v, retain_graph=True, materialize_grads=True)
        return dict(zip(leaves, curved, strict=True))

    return product


def trust_region_step(
    params: Params, gradient: Params, kl: Scalar, objective: Scalar, **settings: Any
) -> tuple[Params, TrustRegionStep]:
    """The step where objective and KL are functions of their own."""
    product = hessian_vector_product(kl, params)
    with torch.no_grad():
        value = objective(params)
    return trust_region_step_of(params, gradient, product, lambda p: (objective(p), kl(p)), value, **settings)


def bandit(target: Tensor) -> tuple[Scalar, Callable[[Params], Scalar]]:
    """E[−|a − target|²] of a Gaussian action in closed form, and the KL from a given policy."""

    def objective(params: Params) -> Tensor:
        return -((params["mean"] - target).square() + (2.0 * params["log_std"]).exp()).sum()

    def kl_from(old: Params) -> Scalar:
        return lambda params: DiagonalGaussian(old["mean"], old["log_std"]).kl(DiagonalGaussian(**params))

    return objective, kl_from


def test_improves_a_gaussian_bandit_within_the_trust_region() -> None:
    target = torch.tensor([2.0, -1.0], dtype=torch.float64)
    objective, kl_from = bandit(target)
    params, largest_kl = START, 0.0
    for _ in range(150):
        new, step = trust_region_step(params, grad(objective)(params), kl_from(params), objective, max_kl=0.02)
        assert step.accepted
        assert step.kl <= 0.02
        # What it says is what it did.
        assert step.improvement == pytest.approx(float(objective(new) - objective(params)))
        assert step.improvement > 0.0
        assert step.kl == pytest.approx(float(kl_from(params)(new)))
        params, largest_kl = new, max(largest_kl, step.kl)
    assert largest_kl > 0.01  # it uses the room it has
    torch.testing.assert_close(params["mean"], target, rtol=0, atol=0.05)
    assert (params["log_std"] < -2.0).all()


@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_the_direction_is_the_natural_gradient(damping: float) -> None:
    logits = torch.tensor([0.5, -1.0, 0.2, 1.1], dtype=torch.float64)
    reward = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    old = {"logits": logits}

    def objective(params: Params) -> Tensor:
        return params["logits"].softmax(-1) @ reward

    def kl(params: Params) -> Tensor:
        return Categorical(logits).kl(Categorical(params["logits"]))

    gradient = grad(objective)(old)
    new, step = trust_region_step(old, gradient, kl, objective, max_kl=1e-4, damping=damping)
    # F = diag(p) − ppᵀ is singular along the constant vector, which the gradient is orthogonal to.
    p, g = logits.softmax(-1), gradient["logits"]
    natural = torch.linalg.pinv(torch.diag(p) - torch.outer(p, p) + damping * torch.eye(4, dtype=p.dtype)) @ g
    expected = step.fraction * (2e-4 / (g @ natural)).sqrt() * natural
    assert step.accepted
    torch.testing.assert_close(new["logits"] - logits, expected, rtol=1e-6, atol=1e-9)
    cosine = torch.nn.functional.cosine_similarity(natural, g, dim=0)
    assert cosine < 0.99  # the negative control: it is not the gradient


def policy_and_obs() -> tuple[torch.nn.Module, Params, Tensor]:
    torch.manual_seed(0)
    policy = GaussianMLP((4,)).build(Sizes(3, 2)).double()
    return policy, {k: v.detach() for k, v in policy.named_parameters()}, torch.randn(3, 6, 3, dtype=torch.float64)


def test_parameters_that_the_kl_does_not_read_stay_finite() -> None:
    objective, kl_from = bandit(torch.ones(2, dtype=torch.float64))
    params = {"unused": torch.tensor([[3.0]], dtype=torch.float64), **START}

    def kl(theta: Params) -> Tensor:
        return kl_from(START)({name: theta[name] for name in START})

    new, step = trust_region_step(params, grad(objective)(params), kl, objective)
    assert step.accepted
    assert torch.equal(new["unused"], params["unused"])


def assert_rejected(params: Params, before: Params, new: Params, step: TrustRegionStep) -> None:
    assert step == TrustRegionStep(improvement=0.0, kl=0.0, fraction=0.0, accepted=False)
    assert new is params
    assert all(torch.equal(new[name], before[name]) for name in before)


def one_dimension(x: float = 0.3) -> tuple[Params, Params]:
    params = {"x": torch.tensor([x], dtype=torch.float64)}
    return params, {name: value.clone() for name, value in params.items()}


def quadratic_kl(params: Params) -> Tensor:
    return 0.5 * (params["x"] - 0.3).square().sum()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_objective_or_kl_is_rejected(bad: float) -> None:
    params, before = one_dimension()
    gradient = {"x": torch.ones(1, dtype=torch.float64)}

    def away(good: Scalar) -> Scalar:
        return lambda theta: good(theta) if torch.equal(theta["x"], before["x"]) else torch.tensor(bad).double()

    def objective(theta: Params) -> Tensor:
        return theta["x"].sum()

    assert trust_region_step(params, gradient, quadratic_kl, objective)[1].accepted  # the control
    assert_rejected(params, before, *trust_region_step(params, gradient, quadratic_kl, away(objective)))
    assert_rejected(params, before, *trust_region_step(params, gradient, away(quadratic_kl), objective))
    never = trust_region_step(params, gradient, quadratic_kl, lambda theta: torch.tensor(bad).double())
    assert_rejected(params, before, *never)


@pytest.mark.parametrize("value", [0.0, 1e-300, float("nan"), float("inf")])
def test_a_degenerate_gradient_takes_no_step(value: float) -> None:
    params, before = one_dimension()
    gradient = {"x": torch.full((1,), value, dtype=torch.float64)}
    assert_rejected(params, before, *trust_region_step(params, gradient, quadratic_kl, lambda theta: theta["x"].sum()))


def test_a_step_that_does_not_improve_is_rejected() -> None:
    params, before = one_dimension()
    uphill = {"x": torch.ones(1, dtype=torch.float64)}
    for objective in (lambda theta: -theta["x"].sum(), lambda theta: 0.0 * theta["x"].sum()):
        assert_rejected(params, before, *trust_region_step(params, uphill, quadratic_kl, objective))


def test_backtracks_where_the_kl_exceeds_its_quadratic_model() -> None:
    params, before = one_dimension()
    uphill = {"x": torch.ones(1, dtype=torch.float64)}

    def kl(theta: Params) -> Tensor:  # the quartic part doubles it at the full step: x = √(2·0.01), 25·x⁴ = 0.01
        return quadratic_kl(theta) + 25.0 * (theta["x"] - 0.3).pow(4).sum()

    def step(**settings: float) -> tuple[Params, TrustRegionStep]:
        return trust_region_step(params, uphill, kl, lambda theta: theta["x"].sum(), damping=0.0, **settings)

    # f²/2 + f⁴/2 ≤ 1/2 in units of 0.02 first holds at f = 0.64: 0.0041 + 0.0017; at 0.8 it is 0.0064 + 0.0041.
    new, accepted = step()
    assert accepted.fraction == pytest.approx(0.64)
    assert accepted.kl == pytest.approx(0.01 * (0.64**2 + 0.64**4))
    torch.testing.assert_close(new["x"], before["x"] + 0.64 * 0.02**0.5)
    assert step(backtrack_ratio=0.5)[1].fraction == 0.5
    assert_rejected(params, before, *step(backtrack_steps=2))


def test_the_line_search_builds_no_graph() -> None:
    params, _ = one_dimension()
    modes = []

    def objective(theta: Params) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return theta["x"].sum()

    trust_region_step(params, {"x": torch.ones(1, dtype=torch.float64)}, quadratic_kl, objective)
    assert modes
    assert not any(modes)


def test_processes_take_one_step_together() -> None:
    # Two processes as threads that average at a barrier. Their bandits pull in different directions, so that each
    # alone would step elsewhere, and the common step lowers the objective of the second.
    targets = [torch.tensor([9.0, 0.0], dtype=torch.float64), torch.tensor([-5.0, 0.5], dtype=torch.float64)]
    weights = [1.0, 3.0]  # of the KL: they differ as well
    barrier, slots = threading.Barrier(2, timeout=30), [torch.zeros(0), torch.zeros(0)]

    def run(rank: int) -> tuple[Params, TrustRegionStep]:
        def reduce(tensor: Tensor) -> Tensor:
            slots[rank] = tensor
            barrier.wait()
            mean = (slots[0] + slots[1]) / 2
            barrier.wait()
            return mean

        objective, kl_from = bandit(targets[rank])
        kl = kl_from(START)
        gradient = grad(objective)(START)
        return trust_region_step(START, gradient, lambda p: weights[rank] * kl(p), objective, reduce=reduce)

    with ThreadPoolExecutor(2) as pool:
        (params, step), (same, same_step) = pool.map(run, range(2))
    objectives = [bandit(target)[0] for target in targets]

    def mean_objective(theta: Params) -> Tensor:
        return (objectives[0](theta) + objectives[1](theta)) / 2

    kl = bandit(targets[0])[1](START)
    alone, alone_step = trust_region_step(START, grad(mean_objective)(START), lambda p: 2.0 * kl(p), mean_objective)
    assert objectives[1](params) < objectives[1](START)
    assert step == same_step
    for name in START:
        assert torch.equal(params[name], same[name])
        torch.testing.assert_close(params[name], alone[name])
    assert step.accepted
    assert step.kl == pytest.approx(alone_step.kl)


def test_works_without_grad_mode_and_in_float32() -> None:
    policy, params, obs = policy_and_obs()
    params, obs = {name: value.float() for name, value in params.items()}, obs.float()
    with torch.no_grad():
        old = functional_call(policy, params, (obs,))

        def objective(theta: Params) -> Tensor:
            return -functional_call(policy, theta, (obs,)).mean.square().mean()

        def kl(theta: Params) -> Tensor:
            return old.kl(functional_call(policy, theta, (obs,))).mean()

        new, step = trust_region_step(params, grad(objective)(params), kl, objective)
    assert step.accepted
    assert 0.005 < step.kl <= 0.01
    assert {name: (value.shape, value.dtype, value.requires_grad) for name, value in new.items()} == {
        name: (value.shape, torch.float32, False) for name, value in params.items()
    }
