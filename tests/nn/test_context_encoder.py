"""The context encoder: its product of Gaussians is the product of Gaussians, whatever the order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_metarl.nn.context_encoder import ContextEncoder, Evidence, Posterior, ProductOfGaussians
from lit_metarl.nn.recipe import from_recipe, recipe_of
from lit_metarl.types import ConfigError, Sizes, Transition

O, A, Z = 3, 2, 4  # noqa: E741


def make_encoder(**settings: object) -> ContextEncoder:
    torch.manual_seed(0)
    return ProductOfGaussians(latent=Z, hidden=(16,), **settings).build(Sizes(O, A)).double()


def transitions(*lead: int, seed: int = 0) -> Transition:
    draw = torch.Generator().manual_seed(seed)
    obs, action, reward, next_obs = (
        torch.randn(*lead, *size, generator=draw, dtype=torch.float64) for size in ((O,), (A,), (), (O,))
    )
    return Transition(obs, action, reward, next_obs, reward > 0, reward < 0)


def rows(context: Transition, index: object) -> Transition:
    return Transition(*(field[index] for field in context))


@pytest.mark.parametrize("next_obs", [False, True])
@torch.no_grad()
def test_it_equals_a_plain_loop(next_obs: bool) -> None:
    encoder, context = make_encoder(next_obs=next_obs), transitions(2, 7)
    posterior = encoder.posterior(encoder(context))
    for task in range(2):
        for z in range(Z):
            precision = weighted = 0.0
            for i in range(7):
                x = [*context.obs[task, i], *context.action[task, i], context.reward[task, i]]
                x += [*context.next_obs[task, i]] if next_obs else []
                hidden = torch.relu(encoder.trunk[0].weight @ torch.stack(x) + encoder.trunk[0].bias)
                made = encoder.trunk[2].weight @ hidden + encoder.trunk[2].bias
                variance = max(float(F.softplus(made[Z + z])), 1e-7)
                precision += 1 / variance
                weighted += float(made[z]) / variance
            assert float(posterior.variance[task, z]) == pytest.approx(1 / precision, rel=1e-12)
            assert float(posterior.mean[task, z]) == pytest.approx(weighted / precision, rel=1e-12)


def test_it_is_the_product_of_the_densities() -> None:
    """The logarithm of the product of the factors' densities is that of the posterior, up to a constant in z."""
    encoder, context = make_encoder(), transitions(5)
    mean, variance = encoder.factors(context)
    posterior = encoder.posterior(encoder(context))
    z = torch.linspace(-3, 3, 9, dtype=torch.float64)[:, None]  # the same in every entry of z

    def log_density(at: Tensor, m: Tensor, v: Tensor) -> Tensor:
        return -0.5 * (at - m) ** 2 / v - 0.5 * v.log()

    product = sum(log_density(z, mean[i], variance[i]) for i in range(5))
    difference = product - log_density(z, posterior.mean, posterior.variance)
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), atol=1e-9, rtol=0)
    assert ((product - product[:1]).abs() > 1.0).any()


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_order_does_not_matter_and_parts_add_up(deterministic: bool) -> None:
    encoder, context = make_encoder(deterministic=deterministic), transitions(3, 11)
    whole = encoder(context)
    shuffled = encoder(rows(context, (slice(None), torch.randperm(11))))
    parts = encoder(rows(context, (slice(None), slice(4)))).plus(encoder(rows(context, (slice(None), slice(4, 11)))))
    for other in (shuffled, parts):
        for a, b in zip(whole, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    altered = rows(context, (slice(None), slice(1, 11)))
    assert not torch.allclose(encoder(altered).precision, whole.precision)


def test_what_is_masked_does_not_count() -> None:
    encoder, context = make_encoder(), transitions(2, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]], dtype=torch.float64)
    expected = encoder(rows(context, (slice(None), slice(3))))
    for a, b in zip(encoder(context, mask), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert expected.number.tolist() == [[3.0], [3.0]]


def test_a_deterministic_z_is_a_mean_without_noise() -> None:
    encoder, context = make_encoder(deterministic=True), transitions(2, 6)
    posterior = encoder.posterior(encoder(context))
    made = encoder.trunk(torch.cat([context.obs, context.action, context.reward[..., None]], dim=-1))
    torch.testing.assert_close(posterior.mean, made.mean(1))
    torch.testing.assert_close(posterior.sample(torch.randn(2, Z, dtype=torch.float64)), made.mean(1))
    assert (encoder.posterior(encoder.nothing(2)).mean == 0).all()


def test_without_a_transition_it_is_the_prior() -> None:
    encoder = make_encoder()
    prior = encoder.posterior(encoder.nothing(3, 2), limit=5)
    assert prior.mean.shape == (3, 2, Z)
    assert (prior.mean == 0).all()
    assert (prior.variance == 1).all()
    noise = torch.randn(3, 2, Z, dtype=torch.float64)
    assert torch.equal(prior.sample(noise), noise)
    context = transitions(3, 2, 4)
    for a, b in zip(encoder.nothing(3, 2).plus(encoder(context)), encoder(context), strict=True):
        assert torch.equal(a, b)


def test_beyond_a_limit_the_posterior_gets_no_narrower() -> None:
    encoder = make_encoder()
    evidence = encoder(transitions(12))
    posterior, limited = encoder.posterior(evidence), encoder.posterior(evidence, limit=3)
    torch.testing.assert_close(limited.mean, posterior.mean)
    torch.testing.assert_close(limited.variance, 4 * posterior.variance)
    assert torch.equal(encoder.posterior(evidence, limit=12).variance, posterior.variance)
    assert torch.equal(encoder.posterior(evidence, limit=99).variance, posterior.variance)


def test_a_sample_carries_the_gradients_of_mean_and_variance() -> None:
    mean, variance = torch.tensor([0.5], requires_grad=True), torch.tensor([4.0], requires_grad=True)
    z = Posterior(mean, variance).sample(torch.tensor([-1.0]))
    z.backward()
    # z = 0.5 − √4; dz/dmean = 1, dz/dvariance = −1/(2·√4)
    assert (z.item(), float(mean.grad), float(variance.grad)) == (-1.5, 1.0, -0.25)


def test_a_factor_has_a_smallest_variance() -> None:
    encoder = make_encoder()
    with torch.no_grad():
        encoder.trunk[-1].bias[Z:] = -100.0
    context = transitions(5)
    assert (encoder.factors(context)[1] == 1e-7).all()
    assert all(x.isfinite().all() for x in encoder.posterior(encoder(context)))


def test_it_is_written_in_a_config() -> None:
    factory = ProductOfGaussians(latent=2, next_obs=True)
    assert recipe_of(from_recipe(recipe_of(factory))) == recipe_of(factory)
    with pytest.raises(ConfigError, match=r"encoder\.latent = 0 cannot be used: z needs"):
        ProductOfGaussians(latent=0).build(Sizes(O, A))
    assert isinstance(make_encoder().float().nothing(1), Evidence)
