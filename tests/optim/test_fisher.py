"""Fisher products of adapted policies: the dense matrix from explicit Jacobians, and a double backward, agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from meta_cases import attach, random_rounds
from torch import Tensor

from lit_metarl.algorithms import MAML, SGMRL, MetaPolicyGradient, TRPODiCE
from lit_metarl.nn import CategoricalMLP, GaussianMLP
from lit_metarl.optim import TRPO, Iteration, conjugate_gradient, inner_loop
from lit_metarl.optim.fisher import AdaptedPolicies
from lit_metarl.optim.outer_updates import ratio
from lit_metarl.types import Params

TASKS = 3
CASES: dict[str, tuple[type[MetaPolicyGradient], int, dict[str, Any]]] = {
    "one step": (MAML, 1, {}),
    "three steps": (MAML, 3, {}),
    "first order": (MAML, 2, {"first_order": True}),
    "learned step sizes": (MAML, 2, {"learn_inner_lr": True}),
    "learned step sizes, first order": (MAML, 2, {"learn_inner_lr": True, "first_order": True}),
    "some parameters adapt": (MAML, 2, {"adapted_parameters": "trunk.2|log_std"}),
    "with step sizes": (MAML, 1, {"adapted_parameters": "trunk.2", "learn_inner_lr": True}),
    "DiCE": (TRPODiCE, 2, {}),
    "credits": (SGMRL, 2, {}),
    "softmax": (MAML, 2, {"num_actions": 3, "policy": CategoricalMLP((3,))}),
    "softmax, ReLU": (MAML, 1, {"num_actions": 3, "policy": CategoricalMLP((3,), activation="relu")}),
}


@pytest.fixture(params=CASES)
def iteration(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iteration:
    cls, steps, settings = CASES[request.param]
    module = make(cls, **settings)
    rounds = random_rounds(module, TASKS, steps)
    monkeypatch.setattr(inner_loop, "SAMPLES_AT_ONCE", 2 * rounds[0].reward[0].numel())  # parts of two tasks and of one
    return module.iteration(rounds)


def make(cls: type[MetaPolicyGradient], **settings: Any) -> MetaPolicyGradient:
    torch.manual_seed(0)
    return cls(2, 2, **({"policy": GaussianMLP((3,), initial_log_std=-0.3), "inner_lr": 0.7} | settings)).double()


def flat(params: Params) -> Tensor:
    return torch.cat([value.flatten() for value in params.values()])


def named(vector: Tensor, like: Params) -> Params:
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.view_as(value) for part, (name, value) in zip(parts, like.items(), strict=True)}


def dense_fisher(iteration: Iteration) -> Tensor:
    """Σ_s w_s Jᵀ D_sᵀ M_s D_s J with M written down, and Jacobians by one backward pass per entry; ``[P, P]``."""
    start = {name: value.detach() for name, value in iteration.parameters.items()}

    def adapted(vector: Tensor) -> Tensor:
        last = iteration.unroll(named(vector, start)).distributions[-1]
        return torch.stack([*last], dim=-1)  # [B, N, T, A, fields]

    old = iteration.unroll(start).distributions[-1]
    jacobian = torch.autograd.functional.jacobian(adapted, flat(start))  # [B, N, T, A, fields, P]
    if hasattr(old, "logits"):
        p = old.logits.softmax(-1)
        metric = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]  # of a categorical, in its logits
    else:
        # Of a Gaussian: 1/σ² in the mean, 2 in log σ.
        per_field = torch.stack([(-2.0 * old.log_std).exp(), torch.full_like(old.mean, 2.0)], dim=-1)
        metric = torch.diag_embed(per_field.flatten(-2))
    jacobian = jacobian.flatten(3, 4)
    weight = iteration.masks[-1] / iteration.masks[-1].sum()
    return torch.einsum("bnt,bntip,bntij,bntjq->pq", weight, jacobian, metric.detach(), jacobian)


def double_backward(iteration: Iteration, vector: Tensor) -> Tensor:
    """Product with the Hessian of the mean KL by differentiating it twice through the adaptation, ``[P]``."""
    leaves = {name: value.detach().requires_grad_() for name, value in iteration.parameters.items()}
    new = iteration.unroll(leaves).distributions[-1]
    old = type(new)(*(field.detach() for field in new))
    kl = (old.kl(new) * iteration.masks[-1]).sum() / iteration.masks[-1].sum()
    inputs = list(leaves.values())
    slope = torch.autograd.grad(kl, inputs, create_graph=True, materialize_grads=True)
    product = torch.autograd.grad(slope, inputs, list(named(vector, leaves).values()), materialize_grads=True)
    return torch.cat([value.flatten() for value in product])


def test_products_are_those_of_the_dense_matrix_and_of_a_double_backward(iteration: Iteration) -> None:
    policies, fisher = AdaptedPolicies(iteration, ratio), dense_fisher(iteration)
    assert torch.linalg.matrix_rank(fisher) > 3
    for vector in torch.randn(3, len(fisher), dtype=torch.float64):
        product = flat(policies.fisher_product(named(vector, policies.params)))
        torch.testing.assert_close(product, fisher @ vector, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(product, double_backward(iteration, vector), rtol=1e-9, atol=1e-12)


def test_value_and_gradient_are_those_of_the_objective(iteration: Iteration) -> None:
    policies = AdaptedPolicies(iteration, ratio)
    torch.testing.assert_close(policies.value, iteration.objective(iteration.unroll(), ratio).detach())
    torch.testing.assert_close(policies.gradient, iteration.gradient(ratio), rtol=1e-9, atol=1e-13)
    assert not any(value.requires_grad for value in (policies.value, *policies.gradient.values()))


def test_the_values_elsewhere_are_those_of_one_unrolled_adaptation(iteration: Iteration) -> None:
    policies = AdaptedPolicies(iteration, ratio)
    elsewhere = {name: value + 0.1 * torch.randn_like(value) for name, value in policies.params.items()}
    value, distance = policies.evaluate(elsewhere)
    old, new = iteration.unroll(), iteration.unroll(elsewhere)
    kl = old.distributions[-1].kl(new.distributions[-1])
    torch.testing.assert_close(value, iteration.objective(new, ratio))
    torch.testing.assert_close(distance, (kl * iteration.masks[-1]).sum() / iteration.masks[-1].sum())
    assert distance > 1e-4
    assert not value.requires_grad
    assert not distance.requires_grad


def test_the_adaptation_matters() -> None:
    # The negative control: without the steps' derivative the matrix is another one.
    def product(**settings: Any) -> Tensor:
        module = make(MAML, **settings)
        policies = AdaptedPolicies(module.iteration(random_rounds(module, TASKS)), ratio)
        return flat(policies.fisher_product({name: torch.ones_like(p) for name, p in policies.params.items()}))

    exact, first_order = product(), product(first_order=True)
    assert (exact - first_order).norm() > 0.05 * exact.norm()


@pytest.mark.parametrize("cls", [MAML, SGMRL])
def test_the_update_is_the_natural_gradient_of_the_double_backward(cls: type[MetaPolicyGradient]) -> None:
    module = attach(make(cls, outer=TRPO(max_kl=1e-3, cg_iterations=4), learn_inner_lr=True))
    rounds = random_rounds(module, TASKS, 2)
    iteration = module.iteration(rounds)
    before, g = flat(module.meta_parameters()).detach().clone(), flat(iteration.gradient(ratio))
    direction = conjugate_gradient(lambda v: double_backward(iteration, v), g, 4, 1e-5)
    metrics = module.outer.update(iteration)
    expected = metrics["step_fraction"] * (2e-3 / g.dot(direction)).sqrt() * direction
    assert metrics["step_fraction"] > 0
    torch.testing.assert_close(flat(module.meta_parameters()).detach() - before, expected, rtol=1e-5, atol=1e-9)
