"""The family of meta-policy-gradients: gradients against plain torch, strategies, trust regions, what adapts."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from meta_cases import (
    adapted_params,
    attach,
    batch_of,
    cached_autocast,
    initial_params,
    quiet_trainer,
    random_rounds,
    unadapted,
)
from torch import Tensor
from torch.func import functional_call

from lit_metarl import load_policy
from lit_metarl.algorithms import (
    EMAML,
    FOMAML,
    LVC,
    MAML,
    SGMRL,
    TMAML,
    TRPOFOMAML,
    TRPOMAML,
    DiCEMAML,
    MetaPolicyGradient,
    ProMP,
    ProMPTayPO2,
    TRPODiCE,
)
from lit_metarl.data import TrajectoryDataModule
from lit_metarl.envs.navigation import Corners, Navigation2D
from lit_metarl.envs.tabular import TabularTasks
from lit_metarl.estimators import TMAML as TMAMLSurrogate
from lit_metarl.estimators import (
    DiCE,
    DoublyRobust,
    LikelihoodRatio,
    LoadedDiCE,
    LogLikelihood,
    OrderedTMAML,
    TayPO,
    TruncatedDR,
)
from lit_metarl.nn import ActionDependentLinear, CategoricalMLP, GaussianMLP, LinearFeature, MetaLearned
from lit_metarl.optim import (
    PPO,
    TRPO,
    VPG,
    CrossTask,
    EMAMLCorrection,
    LeaveOneOut,
    LinearisedLeaveOneOut,
    NoCorrection,
    Plain,
    SamplingCorrection,
    inner_loop,
)
from lit_metarl.optim.outer_updates import likelihood, ratio
from lit_metarl.types import ConfigError, DivergenceError, MetaEpisodes, Trajectories

O, A, RIDGE = 3, 2, 0.1  # noqa: E741


def make(cls: type[MetaPolicyGradient] = MAML, **kwargs: Any) -> MetaPolicyGradient:
    torch.manual_seed(0)
    settings = {"policy": GaussianMLP((4,)), "baseline": LinearFeature(RIDGE), "gamma": 0.9, "gae_lambda": 0.7}
    return cls(O, A, **(settings | kwargs)).double()


def meta_gradient(module: MetaPolicyGradient, rounds: list[Trajectories]) -> dict[str, Tensor]:
    """What VPG follows."""
    return module.meta_gradient(rounds)


def parameters(module: MetaPolicyGradient) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.meta_parameters().items()}


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Gradients ---------------------------------------------------------------------------------------------------------


def plain_log_prob(params: dict[str, Tensor], obs: Tensor, action: Tensor) -> Tensor:
    hidden = torch.tanh(obs @ params["trunk.0.weight"].T + params["trunk.0.bias"])
    mean = hidden @ params["trunk.2.weight"].T + params["trunk.2.bias"]
    return torch.distributions.Normal(mean, params["log_std"].exp()).log_prob(action).sum(-1)


def plain_advantages(obs: np.ndarray, reward: np.ndarray, lengths: list[int]) -> np.ndarray:
    """One task's: ridge regression on its steps, generalised advantages by recursion, zero mean and unit deviation."""
    to_go, features, advantage = {}, {}, {}
    for n, length in enumerate(lengths):
        following = 0.0
        for t in reversed(range(length)):
            to_go[n, t] = following = reward[n, t] + 0.9 * following
            time = t / 100
            features[n, t] = [*obs[n, t], *obs[n, t] ** 2, time, time**2, time**3, 1.0]
    x, y = np.array(list(features.values())), np.array(list(to_go.values()))
    weights = np.linalg.lstsq(
        np.vstack([x, np.sqrt(RIDGE) * np.eye(x.shape[1])]), np.concatenate([y, np.zeros(x.shape[1])])
    )[0]
    for n, length in enumerate(lengths):
        following = next_value = 0.0
        for t in reversed(range(length)):
            value = np.dot(features[n, t], weights)
            following = reward[n, t] + 0.9 * next_value - value + 0.9 * 0.7 * following
            next_value, advantage[n, t] = value, following
    values = np.array(list(advantage.values()))
    result = np.zeros_like(reward)
    for index, value in advantage.items():
        result[index] = (value - values.mean()) / values.std()
    return result


def plain_meta_gradient(theta: dict[str, Tensor], rounds: list[Trajectories], lr: float, discounted: bool) -> Any:
    """MAML task by task and step by step: θ' = θ + α ∇J(θ), then the gradient of the mean of J(θ') in θ."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
    tasks, number, horizon = rounds[0].reward.shape
    total = torch.zeros((), dtype=torch.float64)
    for task in range(tasks):
        params = theta
        for k, trajectories in enumerate(rounds):
            lengths = trajectories.mask[task].sum(-1).int().tolist()
            advantage = torch.tensor(
                plain_advantages(trajectories.obs[task].numpy(), trajectories.reward[task].numpy(), lengths)
            )
            value = torch.zeros((), dtype=torch.float64)
            for n, length in enumerate(lengths):
                log_prob = plain_log_prob(
                    params, trajectories.obs[task, n, :length], trajectories.action[task, n, :length]
                )
                for t in range(length):
                    value = value + (0.9**t if discounted else 1.0) * log_prob[t] * advantage[n, t]
            value = value / number / horizon
            if k < len(rounds) - 1:
                gradient = torch.autograd.grad(value, list(params.values()), create_graph=True)
                params = {name: p + lr * g for (name, p), g in zip(params.items(), gradient, strict=True)}
        total = total + value / tasks
    return torch.autograd.grad(total, list(theta.values()))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("discounted", [False, True])
@pytest.mark.parametrize("samples_at_once", [1, 16_000])  # task by task, or all at once
def test_the_meta_gradient_equals_plain_torch(
    steps: int, discounted: bool, samples_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner_loop, "SAMPLES_AT_ONCE", samples_at_once)
    module = make(inner_lr=0.7, discounted=discounted)
    for tasks in (1, 3):
        rounds = random_rounds(module, tasks, steps)
        theta = dict(module.policy.named_parameters())
        expected = plain_meta_gradient(theta, rounds, 0.7, discounted)
        for own, plain in zip(meta_gradient(module, rounds).values(), expected, strict=True):
            assert_close(own, plain)
            assert plain.abs().max() > 1e-4


def test_adaptation_leaves_no_graph() -> None:
    module = make()
    adaptation = {name: value.requires_grad_() for name, value in unadapted(module).items()}
    assert not any(value.requires_grad for value in module.adapt(adaptation, random_rounds(module)[0]).values())


def test_first_order_takes_the_gradient_at_the_adapted_parameters() -> None:
    module = make(FOMAML, inner_lr=0.7)
    rounds = random_rounds(module)
    adapted = {n: p.requires_grad_() for n, p in adapted_params(module, rounds[0]).items()}
    total = torch.zeros((), dtype=torch.float64)
    for task in range(3):
        here = {name: value[task] for name, value in adapted.items()}
        log_prob = functional_call(module.policy, here, (rounds[1].obs[task],)).log_prob(rounds[1].action[task])
        advantage = plain_advantages(
            rounds[1].obs[task].numpy(), rounds[1].reward[task].numpy(), rounds[1].mask[task].sum(-1).int().tolist()
        )
        total = total + (log_prob * torch.tensor(advantage)).sum() / 4 / 5 / 3
    expected = [g.sum(0) for g in torch.autograd.grad(total, list(adapted.values()))]
    first = meta_gradient(module, rounds)
    exact = meta_gradient(make(MAML, inner_lr=0.7), rounds)
    for (name, own), plain in zip(first.items(), expected, strict=True):
        assert_close(own, plain)
        assert not torch.allclose(own, exact[name], rtol=1e-3)


def test_first_step_of_ppo_is_that_of_vanilla_policy_gradient() -> None:
    """At the old parameters ratios are 1 and the KL penalty has no slope; a second epoch is elsewhere."""
    gradients = {}
    for name, outer in {"vpg": VPG(), "ppo": PPO(epochs=1, kl_penalty=3.0), "later": PPO(lr=0.1, epochs=2)}.items():
        module = attach(make(outer=outer, inner=LikelihoodRatio(), discounted=True))
        module.outer.update(module.iteration(random_rounds(module, steps=2)))
        gradients[name] = [p.grad for p in module.policy.parameters()]
    for vpg, ppo, later in zip(*gradients.values(), strict=True):
        assert_close(ppo, vpg)
        assert not torch.allclose(later, vpg, rtol=1e-3)


def test_surrogates_of_order_one_adapt_alike_and_differ_in_curvature() -> None:
    modules = [make(inner=inner) for inner in (LogLikelihood(), LikelihoodRatio(), LoadedDiCE(), TayPO())]
    rounds = random_rounds(modules[0])
    adapted = [adapted_params(module, rounds[0]) for module in modules]
    gradients = [meta_gradient(module, rounds)["policy.trunk.0.weight"] for module in modules]
    for other in adapted[1:]:
        assert_close(other, adapted[0])
    for one, two in itertools.combinations(gradients[:3], 2):
        assert not torch.allclose(one, two, rtol=1e-4)


@pytest.mark.parametrize(
    ("cls", "steps"), [(MAML, 1), (SGMRL, 1), (EMAML, 1), (TMAML, 2), (ProMPTayPO2, 2)], ids=lambda x: str(x)
)
def test_padding_does_not_matter(cls: type[MetaPolicyGradient], steps: int) -> None:
    module = make(cls, time_average=False)
    rounds = random_rounds(module, steps=steps)
    longer = [
        Trajectories(
            *(torch.cat([x, torch.zeros(3, 4, 3, *x.shape[3:], dtype=x.dtype)], dim=2) for x in trajectories[:5]),
            *trajectories[5:],
        )
        for trajectories in rounds
    ]
    assert longer[0].obs.shape == (3, 4, 8, O)
    assert_close(meta_gradient(module, longer), meta_gradient(module, rounds))
    averaged = make(cls, time_average=True)
    assert not torch.allclose(
        meta_gradient(averaged, longer)["policy.log_std"], meta_gradient(averaged, rounds)["policy.log_std"], rtol=1e-3
    )


# Strategies --------------------------------------------------------------------------------------------------------

FAMILY = {
    MAML: (LogLikelihood(), NoCorrection(), VPG(), False),
    FOMAML: (LogLikelihood(), NoCorrection(), VPG(), True),
    TRPOMAML: (LogLikelihood(), NoCorrection(), TRPO(), False),
    TRPOFOMAML: (LogLikelihood(), NoCorrection(), TRPO(), True),
    EMAML: (LogLikelihood(), EMAMLCorrection(), VPG(), False),
    SGMRL: (LogLikelihood(), LeaveOneOut(), VPG(), False),
    DiCEMAML: (DiCE(), NoCorrection(), VPG(), False),
    TRPODiCE: (LoadedDiCE(decay=1.0), NoCorrection(), TRPO(), False),
    LVC: (LikelihoodRatio(), NoCorrection(), VPG(), False),
    ProMP: (LikelihoodRatio(), NoCorrection(), PPO(), False),
    ProMPTayPO2: (TayPO(order=2), NoCorrection(), PPO(), False),
    TMAML: (TMAMLSurrogate(), NoCorrection(), VPG(), False),
}


@pytest.mark.parametrize("cls", FAMILY, ids=lambda cls: cls.__name__)
def test_a_name_is_a_choice_of_strategies(cls: type[MetaPolicyGradient]) -> None:
    def strategies(module: MetaPolicyGradient) -> tuple[Any, ...]:
        return module.inner.surrogate, module.correction, module.outer, module.inner.first_order

    assert strategies(make(cls)) == FAMILY[cls]
    given = (DoublyRobust(), Plain(), PPO(lr=0.5), not FAMILY[cls][3])
    names = ("inner", "correction", "outer", "first_order")
    assert strategies(make(cls, **dict(zip(names, given, strict=True)))) == given


INNER = (
    *(LogLikelihood(), LikelihoodRatio(), DiCE(), LoadedDiCE(0.5), DoublyRobust(), TruncatedDR()),
    *(TayPO(3), TMAMLSurrogate()),
)
CORRECTIONS = (
    *(NoCorrection(), EMAMLCorrection(), LeaveOneOut(), LinearisedLeaveOneOut(), CrossTask(), Plain()),
    LeaveOneOut(doubly_robust=False),
)
OUTER = (VPG(), PPO(epochs=2, adaptive_kl=True), TRPO())


@pytest.mark.parametrize("inner", INNER, ids=repr)
@pytest.mark.parametrize("correction", CORRECTIONS, ids=repr)
@pytest.mark.parametrize("outer", OUTER, ids=lambda outer: type(outer).__name__)
def test_everything_composes(inner: Any, correction: Any, outer: Any) -> None:
    module = attach(make(inner=inner, correction=correction, outer=outer, learn_inner_lr=True))
    before = parameters(module)
    metrics = module.outer.update(module.iteration(random_rounds(module, tasks=2)))
    assert all(torch.isfinite(value) for value in metrics.values())
    for name, value in parameters(module).items():
        assert torch.isfinite(value).all()
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("cls", [TRPOMAML, TRPODiCE])
def test_a_trust_region_step_improves_within_its_bound(cls: type[MetaPolicyGradient]) -> None:
    module = attach(make(cls, inner_lr=0.5, outer=TRPO(max_kl=0.02)))
    rounds = random_rounds(module, steps=2)  # the last of three is the one that counts

    def adapted_distributions() -> torch.distributions.Normal:
        distribution = module.iteration(rounds).unroll().distributions[-1]
        return torch.distributions.Normal(distribution.mean.detach(), distribution.log_std.detach().exp())

    old, problem = adapted_distributions(), module.iteration(rounds)
    before = problem.objective(problem.unroll(), ratio).item()
    metrics = module.outer.update(problem)
    kl = torch.distributions.kl_divergence(old, adapted_distributions()).sum(-1)
    mean_kl = float((kl * rounds[-1].mask).sum() / rounds[-1].mask.sum())
    assert 0.002 < mean_kl <= 0.02
    assert float(metrics["outer_kl"]) == pytest.approx(mean_kl, rel=1e-6)
    assert float(metrics["objective"]) == pytest.approx(before)
    assert problem.objective(problem.unroll(), ratio).item() > before + 1e-3


def test_adaptive_penalties_follow_the_kl_of_their_round() -> None:
    def penalties_after(target: float) -> tuple[list[float], list[float]]:
        module = attach(make(ProMP, outer=PPO(lr=0.05, epochs=2, kl_penalty=0.25, adaptive_kl=True, kl_target=target)))
        rounds = random_rounds(module, steps=2)
        problem = module.iteration(rounds)
        before = problem.unroll().distributions
        module.outer.update(problem)
        after = problem.unroll().distributions
        kls = [
            ((old.kl(new) * trajectories.mask).sum() / trajectories.mask.sum()).item()
            for old, new, trajectories in zip(before, after, rounds, strict=True)
        ]
        assert module.counters()["outer"] == ["PPO", {"penalties": module.outer.penalties}]
        other = make(ProMP)
        other.load_counters(module.counters())
        assert other.outer.penalties == module.outer.penalties
        return module.outer.penalties, kls[:-1]

    assert penalties_after(1e9)[0] == [0.125, 0.125]
    low, kls = penalties_after(1e-9)
    assert low == [0.5, 0.5]
    assert min(kls) > 1e-3
    for k, kl in enumerate(kls):  # the KL of the first iteration does not depend on its target
        for factor, expected in ((0.65, 0.125), (0.68, 0.25), (1.0, 0.25), (1.49, 0.25), (1.51, 0.5)):
            assert penalties_after(kl / factor)[0][k] == expected
    fixed = attach(make(ProMP, outer=PPO(kl_penalty=0.25)))
    fixed.outer.update(fixed.iteration(random_rounds(fixed)))
    assert fixed.outer.penalties == [0.25]
    resumed = attach(make(ProMP, outer=PPO(kl_penalty=10.0)))
    resumed.load_counters(fixed.counters())
    resumed.outer.update(resumed.iteration(random_rounds(resumed)))
    assert resumed.outer.penalties == [10.0]  # as its settings say, not the checkpoint


def test_the_penalty_is_the_mean_over_inner_rounds_each_with_its_own_coefficient() -> None:
    outer = PPO(lr=0.05, clip=0.1, epochs=2, adaptive_kl=True)
    module = attach(make(ProMP, outer=outer))
    rounds = random_rounds(module, steps=2)
    module.outer.penalties[:] = [0.5, 2.0]
    problem, risen = module.iteration(rounds), []
    old, ascend = problem.unroll(), problem.ascend

    def note(value: Tensor) -> None:
        new, last = problem.unroll(), problem.signals[-1]
        ratios = (new.log_probs[-1] - last.behaviour_log_prob).exp()
        clipped = torch.minimum(ratios * last.advantage, ratios.clamp(0.9, 1.1) * last.advantage)
        kls = [
            ((a.kl(b) * trajectories.mask).sum() / trajectories.mask.sum()).item()
            for a, b, trajectories in zip(old.distributions, new.distributions, rounds, strict=True)
        ]
        penalty = (0.5 * kls[0] + 2.0 * kls[1]) / 2
        risen.append((value.item(), (clipped * last.mask).sum(-1).mean().item() / 5 - penalty, penalty))
        ascend(value)

    problem.ascend = note
    metrics = module.outer.update(problem)
    assert outer.penalties == []  # what two modules are given has no state of either
    assert risen[0][2] == 0.0
    assert risen[1][2] > 1e-3
    for value, expected, _ in risen:
        assert value == pytest.approx(expected, rel=1e-9)
    assert metrics["kl_penalty"] == sum(module.outer.penalties) / 2


# What adapts -------------------------------------------------------------------------------------------------------


def test_only_parameters_that_the_expression_finds_adapt() -> None:
    module = make(adapted_parameters=r"^trunk\.2\.|log_std")
    initial, adapted = initial_params(module), adapted_params(module, random_rounds(module)[0])
    moved = {name for name in initial if not torch.equal(adapted[name], initial[name])}
    assert moved == {"trunk.2.weight", "trunk.2.bias", "log_std"}
    gradient = meta_gradient(module, random_rounds(module))
    assert all(g.abs().max() > 1e-4 for g in gradient.values())  # the shared ones are learned all the same


def test_learned_step_sizes_start_at_the_fixed_one_and_are_used() -> None:
    fixed, learned = make(inner_lr=0.25), attach(make(inner_lr=0.25, learn_inner_lr=True, adapted_parameters="trunk"))
    everything = make(inner_lr=0.25, learn_inner_lr=True)
    rounds = random_rounds(fixed)
    assert_close(adapted_params(everything, rounds[0]), adapted_params(fixed, rounds[0]), 0.0)
    assert "log_std" not in learned.learned_step_sizes
    assert learned.learned_step_sizes["trunk/0/weight"].shape == (4, O)
    learned.outer.update(learned.iteration(rounds))
    for size in learned.learned_step_sizes.values():
        assert size.grad.abs().max() > 1e-6
        assert not torch.isclose(size, torch.tensor(0.25).double(), atol=1e-6).any()
    with torch.no_grad():
        learned.learned_step_sizes["trunk/0/bias"].zero_()
        learned.learned_step_sizes["trunk/2/bias"].fill_(0.5)
    initial, adapted = initial_params(learned), adapted_params(learned, rounds[0])
    assert torch.equal(adapted["trunk.0.bias"], initial["trunk.0.bias"])
    reference = make(inner_lr=0.5)
    reference.policy.load_state_dict(learned.policy.state_dict())
    assert_close(adapted["trunk.2.bias"], adapted_params(reference, rounds[0])["trunk.2.bias"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_lr": 0.0}, r"model.inner_lr = 0\.0"),
        ({"inner_lr": float("inf")}, "model.inner_lr = inf"),
        ({"gamma": 1.5}, r"model.gamma = 1\.5"),
        ({"gamma": -0.1}, r"model.gamma = -0\.1"),
        ({"gae_lambda": 1.001}, r"model.gae_lambda = 1\.001"),
        ({"gae_lambda": -0.1}, r"model.gae_lambda = -0\.1"),
        (
            {"adapted_parameters": "nothing"},
            "model.adapted_parameters = 'nothing' cannot be used: it finds none of the parameters log_std",
        ),
        ({"adapted_parameters": "("}, r"model.adapted_parameters = '\(' cannot be used"),
        ({"policy": CategoricalMLP()}, "CategoricalMLP.*use GaussianMLP"),
        ({"policy": GaussianMLP(), "num_actions": 4}, "GaussianMLP.*4 discrete ones; use CategoricalMLP"),
    ],
)
def test_impossible_settings_are_refused_by_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)


@pytest.mark.parametrize("settings", [{"gamma": 0.0, "gae_lambda": 0.0}, {"gamma": 1.0, "gae_lambda": 1.0}])
def test_discounts_may_be_zero_or_one(settings: dict[str, Any]) -> None:
    module = make(**settings)
    assert settings == {"gamma": module.inner.gamma, "gae_lambda": module.gae_lambda}


NO_PLAIN_STEPS = ("LBFGS", "Optimizer", "SparseAdam", "Muon")


@pytest.mark.parametrize(
    ("outer", "key", "refused", "allowed"),
    [
        (VPG, "lr", (0.0, math.inf), (1e-9,)),
        (VPG, "optimizer_class", ("Adamant", "lr_scheduler", *NO_PLAIN_STEPS), ("SGD", "AdamW", "RMSprop")),
        (PPO, "lr", (0.0, math.inf), (1e-9,)),
        (PPO, "clip", (0.0,), (1e-9, math.inf)),
        (PPO, "epochs", (0,), (1,)),
        (PPO, "kl_penalty", (-1e-9,), (0.0,)),
        (PPO, "kl_target", (0.0,), (1e-9,)),
        (TRPO, "max_kl", (0.0, math.inf), (1e-9,)),
        (TRPO, "cg_iterations", (0,), (1,)),
        (TRPO, "damping", (-1e-9,), (0.0,)),
        (TRPO, "backtrack_ratio", (0.0, 1.0), (1e-9, 0.999)),
        (TRPO, "backtrack_steps", (0,), (1,)),
    ],
)
def test_bounds_of_outer_settings(outer: Any, key: str, refused: tuple[Any, ...], allowed: tuple[Any, ...]) -> None:
    for value in refused:
        with pytest.raises(ConfigError, match=f"outer.{key} = {value!r}"):
            outer(**{key: value})
    for value in allowed:
        assert getattr(outer(**{key: value}), key) == value


def test_an_optimizer_that_cannot_step_is_refused_with_the_reason() -> None:
    message = r"outer\.optimizer_class = 'LBFGS' cannot be used: .*'closure'; take one that .*, such as Adam or SGD"
    with pytest.raises(ConfigError, match=message):
        VPG(optimizer_class="LBFGS")
    for given in ({"momentum": 0.9}, {"lr": 0.1}, {"betas": (0.9, 1.5)}):  # of Adam
        with pytest.raises(
            ConfigError, match=r"outer\.optimizer_args = .* cannot be used: .*torch\.optim\.Adam, without lr"
        ):
            VPG(optimizer_args=given)
    assert VPG(optimizer_args={"betas": (0.5, 0.5), "capturable": True}).kind == "VPG with Adam"


# Data and evaluation -----------------------------------------------------------------------------------------------


def test_rewards_values_and_advantages_share_a_scale() -> None:
    rounds = random_rounds(make())
    raw, scaled = (make(normalise_advantages=flag).process(rounds[0]) for flag in (False, True))
    assert_close(raw.reward, rounds[0].reward)
    for task in range(3):
        valid = rounds[0].mask[task] > 0
        advantage = raw.advantage[task][valid]
        scale = advantage.std(correction=0)
        assert abs(float(scale) - 1) > 0.01
        assert_close(scaled.reward[task] * scale, raw.reward[task])
        assert_close(scaled.value[task] * scale, raw.value[task])
        assert_close(scaled.advantage[task][valid] * scale, advantage - advantage.mean())


def test_metrics_of_an_evaluation() -> None:
    returns = {
        "test": torch.tensor([[[0.0, 2.0], [3.0, 5.0]], [[7.0, 9.0], [8.0, 8.0]], [[1.0, 3.0], [10.0, 12.0]]]),
        "out_of_distribution": torch.tensor([[[-1.0, -1.0]], [[0.0, 2.0]], [[-2.0, -4.0]]]),
    }
    random = {"test": torch.tensor([[-8.0, -6.0], [-4.0, -4.0]])}
    metrics = make().evaluation_metrics(MetaEpisodes(returns, {}, random, {}))
    assert {name: float(value) for name, value in metrics.items()} == {
        "return": 6.5,
        "return_std": 4.5,
        "return_after_0_steps": 2.5,
        "return_after_1_steps": 8.0,
        "return_after_2_steps": 6.5,
        "return_random": -5.5,
        "out_of_distribution/return": -3.0,
        "out_of_distribution/return_std": 0.0,
        "out_of_distribution/return_after_0_steps": -1.0,
        "out_of_distribution/return_after_1_steps": 1.0,
        "out_of_distribution/return_after_2_steps": -3.0,
    }


def test_a_context_that_the_policy_was_not_built_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.context_dim = 0 cannot be used: the tasks are told with 2 numbers"):
        make().before_adaptation(torch.zeros(3, 2))


def test_another_outer_update_than_the_checkpoints_starts_afresh(caplog: pytest.LogCaptureFixture) -> None:
    module = make(ProMP, outer=PPO(adaptive_kl=True))
    module.load_counters(make(outer=VPG()).counters())
    assert "model.outer was VPG with Adam: PPO starts without its state" in caplog.text
    assert module.outer.penalties == []


def test_an_older_checkpoint_does_not_name_the_optimizer(caplog: pytest.LogCaptureFixture) -> None:
    make(outer=VPG(optimizer_class="SGD")).load_counters({"env_steps": 0, "outer": ["VPG", {}]})
    assert caplog.text == ""


@dataclass(frozen=True)
class OneCredit(SamplingCorrection):
    """A credit for the first inner round, whatever their number."""

    def credits(self, iteration: Any) -> list[Tensor]:
        return CrossTask().credits(iteration)[:1]


def test_a_correction_has_a_credit_for_every_inner_round() -> None:
    module = make(correction=OneCredit())
    module.iteration(random_rounds(module))
    with pytest.raises(
        ConfigError,
        match=r"OneCredit.* cannot be used: it gives 1 credits; none, or one for each of the 2 inner rounds",
    ):
        module.iteration(random_rounds(module, steps=2))


def test_the_meta_gradient_can_be_had_within_an_evaluation_and_from_what_collecting_knew() -> None:
    module = make()
    rounds = random_rounds(module)
    expected = module.meta_gradient(rounds)
    batch = batch_of(module, rounds)
    with torch.no_grad():
        found = module.meta_gradient(batch.rounds, batch.adaptations)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    batch.adaptations[1]["signals.advantage"].zero_()  # they are read, not computed again
    changed = module.meta_gradient(batch.rounds, batch.adaptations)
    assert not torch.equal(changed["policy.trunk.0.weight"], expected["policy.trunk.0.weight"])


def test_an_update_that_ascends_without_an_optimizer_is_told() -> None:
    module = attach(make(TRPOMAML))
    with pytest.raises(RuntimeError, match="this iteration has no optimizer"):
        VPG().update(module.iteration(random_rounds(module)))


# In a Trainer ------------------------------------------------------------------------------------------------------


def test_metrics_of_a_training_step() -> None:
    module, ended = attach(make(outer=VPG())), []
    rounds = tuple(random_rounds(module, steps=2))
    assert not rounds[2].mask.all()
    module.finish_step = lambda *arguments: ended.append(arguments)
    expected = module.iteration(rounds)
    objective = expected.objective(expected.unroll(), likelihood)
    module.training_step(batch_of(module, rounds, 77), 0)
    ((env_steps, returns, lengths),), metrics = ended, module.metrics.state()["sums"]
    first, _, last = rounds
    assert env_steps == 77
    assert_close(metrics["objective"], objective.detach())
    assert_close(metrics["return_before"], (first.reward * first.mask).sum(-1).mean())
    assert_close(metrics["entropy"], -last.log_prob[last.mask > 0].mean())
    assert_close(returns, (last.reward * last.mask).sum(-1).flatten())
    assert_close(lengths, last.mask.sum(-1).flatten())


class LogRatios(Callback):
    """|log ρ| of every batch at the parameters that collected it, in the precision of a training step."""

    def __init__(self) -> None:
        self.largest: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with trainer.precision_plugin.train_step_context():
            log_probs = pl_module.iteration(batch.rounds).unroll().log_probs
        for log_prob, trajectories in zip(log_probs, batch.rounds, strict=True):
            self.largest.append(float(((log_prob - trajectories.log_prob) * trajectories.mask).detach().abs().max()))


def fit(cls: type[MetaPolicyGradient], env: Any = None, precision: Any = "32-true", **kwargs: Any) -> Any:
    """Two iterations."""
    datamodule = TrajectoryDataModule(
        env or Navigation2D(max_episode_steps=6),
        num_tasks=2,
        trajectories=3,
        epoch_iterations=1,
        eval_tasks=2,
        test_tasks=2,
    )
    seed_everything(0)
    sizes = datamodule.obs_dim, datamodule.action_dim, datamodule.num_actions
    module = cls(*sizes, action_scale=datamodule.action_scale, **kwargs)
    ratios = LogRatios()
    trainer = quiet_trainer(max_epochs=2, precision=precision, callbacks=[ratios])
    before = parameters(module)
    trainer.fit(module, datamodule=datamodule)
    assert not any(torch.equal(value, before[name]) for name, value in parameters(module).items())
    assert all(torch.isfinite(value).all() for value in parameters(module).values())
    return trainer, module, ratios


@pytest.mark.parametrize("cls", [ProMP, TRPOMAML, SGMRL])
def test_discrete_actions(cls: type[MetaPolicyGradient], tmp_path: Path) -> None:
    tasks = TabularTasks(num_states=4, num_actions=3, horizon=5, num_terminal=1)
    trainer, module, ratios = fit(cls, tasks, policy=CategoricalMLP((), bias=False))
    assert max(ratios.largest) < 1e-5
    assert 0 < float(trainer.callback_metrics["eval/return"]) < 5
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    choices = load_policy(tmp_path / "a.ckpt")(np.eye(4))
    assert choices.tolist() == module.policy.trunk[0].weight.argmax(0).tolist()


def test_bf16_collects_in_the_precision_it_trains_in() -> None:
    """Steps are so large that another precision, or old parameters, would show in the adapted policy."""
    env = Corners(max_episode_steps=6, reward_kind="dense")
    for precision, tolerance in (("32-true", 1e-3), ("bf16-mixed", 0.1)):
        _, _, ratios = fit(MAML, env, precision, policy=GaussianMLP((64,)), outer=VPG(0.3), inner_lr=5.0)
        before, adapted = ratios.largest[0::2], ratios.largest[1::2]
        assert len(adapted) == 2
        assert max(adapted) < tolerance
        assert max(before) < 5 * tolerance  # of biases: they are added in bf16 where every task has its own


def test_bf16_uses_the_weights_of_this_epoch() -> None:
    """With autocast's cached bf16 weights the second epoch would see no change of the first."""
    with cached_autocast():
        _, module, _ = fit(ProMP, precision="bf16-mixed", policy=GaussianMLP((8,)), outer=PPO(lr=0.1, epochs=2))
    assert module.latest_metrics["train/inner_kl"] > 1e-3


@pytest.mark.parametrize(
    ("precision", "flag", "warnings"), [("bf16-mixed", False, 1), ("bf16-mixed", True, 0), ("32-true", False, 0)]
)
def test_emulated_bf16_is_named_before_training(
    precision: str, flag: bool, warnings: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": flag})
    fit(MAML, precision=precision, policy=GaussianMLP((8,)))
    named = [r.getMessage() for r in caplog.records if "emulates" in r.getMessage()]
    assert len(named) == warnings
    assert all(f"trainer.precision = {precision}: this CPU" in text and "32-true" in text for text in named)


def test_float16_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer.precision = '16-true'.*use 32-true or bf16-mixed"):
        fit(MAML, precision="16-true")


def test_divergence_names_what_to_lower() -> None:
    with pytest.raises(DivergenceError, match=r"not finite after \d+ .*Lower a step size \(model.inner_lr = 1e\+06"):
        fit(MAML, inner_lr=1e6)
    module = make()
    data = random_rounds(module)[0]
    data.reward[0, 0, 0] = float("inf")
    with pytest.raises(DivergenceError, match="an adaptation step is not finite"):
        module.adapt(unadapted(module), data)


def test_a_saved_policy_is_the_one_before_adaptation_in_the_simulators_range(tmp_path: Path) -> None:
    trainer, module, _ = fit(MAML, policy=GaussianMLP((4,)))
    with torch.no_grad():
        module.policy.trunk[2].bias.copy_(torch.tensor([-50.0, 3.0]))
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    obs = np.array([[0.1, -0.2], [0.4, 0.3]])
    mean = module.policy(torch.tensor(obs, dtype=torch.float32)).mean.detach().numpy()
    expected = np.clip(0.1 * mean, -1.0, 1.0)
    assert (expected[:, 0] == -1.0).all()
    assert (np.abs(expected[:, 1]) < 1.0).all()
    np.testing.assert_allclose(load_policy(tmp_path / "a.ckpt")(obs), expected, rtol=1e-5)


# Baselines that depend on the action ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [TMAMLSurrogate(), OrderedTMAML(), LikelihoodRatio()], ids=repr)
@pytest.mark.parametrize("outer", OUTER, ids=lambda outer: type(outer).__name__)
def test_action_dependent_baselines_compose(inner: Any, outer: Any) -> None:
    module = attach(make(TMAML, inner=inner, outer=outer, baseline=ActionDependentLinear(), correction=LeaveOneOut()))
    before = parameters(module)
    batch = batch_of(module, random_rounds(module, tasks=2, steps=2))
    metrics = module.outer.update(module.iteration(batch.rounds, batch.adaptations))
    assert all(torch.isfinite(value) for value in metrics.values())
    assert all(not torch.equal(value, before[name]) for name, value in parameters(module).items())


def test_dimensions_are_those_of_the_policy_that_acted() -> None:
    module = make(baseline=ActionDependentLinear(), normalise_advantages=True)
    batch = batch_of(module, random_rounds(module, steps=2))
    rounds = module.iteration(batch.rounds, batch.adaptations).signals
    for signals, data in zip(rounds, batch.rounds, strict=True):
        assert signals.dimensions
        assert_close(signals.dimensions.log_prob.sum(-1), data.log_prob)
        assert (signals.dimensions.effect * (1 - data.mask[..., None])).abs().max() == 0
        assert signals.dimensions.effect.abs().max() > 0
    # Without the adaptations they are made again from the data.
    for one, two in zip(module.iteration(batch.rounds).signals, rounds, strict=True):
        assert_close(one.tensors(), two.tensors())
    with_them, without = (
        module.meta_gradient(*given) for given in ((batch.rounds, batch.adaptations), (batch.rounds,))
    )
    assert_close(with_them, without)


def test_effects_share_the_scale_of_values() -> None:
    rounds = random_rounds(make())
    raw, scaled = (
        module.process(rounds[0], unadapted(module))
        for module in (make(baseline=ActionDependentLinear(), normalise_advantages=flag) for flag in (False, True))
    )
    assert raw.dimensions
    assert scaled.dimensions
    scale = (raw.value.abs().sum((1, 2)) / scaled.value.abs().sum((1, 2)))[:, None, None, None]
    assert (scale - 1).abs().min() > 0.01
    assert_close(scaled.dimensions.effect * scale, raw.dimensions.effect)


def test_a_surrogate_without_use_for_dimensions_is_what_it_is() -> None:
    """With Q's value as the state baseline, the likelihood ratio's step is bit for bit that of summed ratios."""
    module = make(LVC, baseline=ActionDependentLinear())
    (before, _) = random_rounds(module)
    signals = module.process(before, unadapted(module))
    sizes = dict.fromkeys(initial_params(module), 0.1)
    stepped = module.inner.adapt(initial_params(module), sizes, before, signals)
    plain = module.inner.adapt(initial_params(module), sizes, before, signals._replace(dimensions=()))
    assert all(torch.equal(stepped[name], plain[name]) for name in plain)
    tamed = module.with_surrogate(TMAMLSurrogate()).inner
    assert not torch.equal(
        tamed.adapt(initial_params(module), sizes, before, signals)["log_std"],
        tamed.adapt(initial_params(module), sizes, before, signals._replace(dimensions=()))["log_std"],
    )


def test_another_surrogate_of_a_first_order_run_is_differentiated_exactly() -> None:
    run = make(FOMAML)
    rounds = random_rounds(run)
    exact = copy.deepcopy(run)
    exact.inner = replace(run.inner, first_order=False)
    found = run.with_surrogate(LogLikelihood()).meta_gradient(rounds)
    assert all(torch.equal(found[name], value) for name, value in exact.meta_gradient(rounds).items())
    assert not all(torch.equal(found[name], value) for name, value in run.meta_gradient(rounds).items())


@pytest.mark.parametrize("outer", OUTER, ids=lambda outer: type(outer).__name__)
def test_a_meta_learned_baseline_composes_and_moves_after_it_was_used(outer: Any) -> None:
    module = attach(make(TMAML, outer=outer, baseline=MetaLearned((4,), updates=2)))
    module.finish_step = lambda *counts: None  # type: ignore[method-assign] # which logs, and there is no loop
    batch, used = batch_of(module, random_rounds(module, tasks=2, steps=2)), []
    before = {name: value.clone() for name, value in module.baseline.named_parameters()}
    predict = module.baseline.predict
    module.baseline.predict = lambda *given: used.append(snapshot(module.baseline)) or predict(*given)  # type: ignore
    module.training_step(batch, 0)
    assert used  # the last round; those before it were predicted when the policy adapted
    assert all(torch.equal(each[name], before[name]) for each in used for name in before)
    assert all(not torch.equal(value, before[name]) for name, value in module.baseline.named_parameters())


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_parameters()}
