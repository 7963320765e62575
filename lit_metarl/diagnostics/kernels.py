"""The tangent kernel K = J Jᵀ of action-value networks: how far a step on one sample moves the value of another.

K_ij = ∇_w Q(s_i, a_i)ᵀ ∇_w Q(s_j, a_j) with the Jacobian J ``[M, P]`` of one critic in its P parameters (Jacot et al.
2018; Evmorfos & Petropulu 2024, "A meta-preconditioning approach for deep Q-learning", Eq. 6 and 12–13). A critic is a
module ``(obs [M, O], action [M, A]) → [E, M]``, evaluated with parameters given by name. Its E members are independent
networks, so each has a kernel of its own and the kernel between two of them is zero.

:func:`exact_kernel` measures K, without a graph and without ever holding J; a :class:`KernelEstimate` is a
differentiable function of the parameters, for objectives to be made of. What is read from a kernel is in
:mod:`lit_metarl.diagnostics.ntk`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from lit_metarl.types import ConfigError, Params, require


@torch.no_grad()
def exact_kernel(
    critic: nn.Module,
    params: Params,
    obs: Tensor,
    action: Tensor,
    member: int | None = None,
    chunk: int = 32,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """K_e = J_e J_eᵀ from per-sample gradients, without ever holding J.

    Row i is the derivative of all values along the gradient of sample i, a Jacobian-vector product in forward mode
    ("NTK-vector products", Novak et al. 2022). One backward pass of Σ_e Q_e gives a sample's gradients of
    all members at once, and the derivative of Q_e along them reads its own part only, as members share no parameter.
    Time is that of about 2·M²·P multiplications for P parameters in all; memory about 2·chunk·P numbers for any M.

    Args:
        critic: see the module.
        params: parameters by name.
        obs: ``[M, O]``.
        action: ``[M, A]``.
        member: this member's kernel only; for it, members may share parameters.
        chunk: samples whose gradients are held at once; does not change the result beyond rounding.
        dtype: to compute in; that of the parameters if None.

    Returns:
        Symmetric ``[E, M, M]``; ``[1, M, M]`` for one ``member``. In (unit of Q)² per (unit of parameter)².
    """
    if dtype is not None:
        params = {name: value.to(dtype) for name, value in params.items()}

    def values(p: Params, some_obs: Tensor, some_action: Tensor) -> Tensor:
        every = action_values(critic, p, some_obs, some_action)
        return every if member is None else every[member : member + 1]

    def gradient(one_obs: Tensor, one_action: Tensor) -> Params:
        return grad(lambda p: values(p, one_obs[None], one_action[None]).sum())(params)

    rows = []
    for start in range(0, obs.shape[0], chunk):
        gradients = vmap(gradient)(obs[start : start + chunk], action[start : start + chunk])
        # By symmetry, the samples before this chunk are done.
        remaining = partial(values, some_obs=obs[start:], some_action=action[start:])
        rows.append(nn.functional.pad(directional_derivatives(remaining, params, gradients), (start, 0)))
    upper = torch.cat(rows).transpose(0, 1).to(next(iter(params.values())).dtype).triu()
    return upper + upper.triu(1).mT


class KernelEstimate(ABC):
    """The tangent kernel as a differentiable function of the parameters, ``[E, M, M]``."""

    @abstractmethod
    def kernel(
        self, critic: nn.Module, params: Params, obs: Tensor, action: Tensor, generator: torch.Generator
    ) -> Tensor:
        """K or an unbiased estimate, ``[E, M, M]``, at ``obs [M, O]`` and ``action [M, A]``."""


@dataclass(frozen=True)
class Exact(KernelEstimate):
    """Per-sample gradients, ``[E, M, M]``: right to rounding, differentiated by a second backward pass.

    The price is memory of several M·P numbers for P parameters, and 4 to 6 times the time of :class:`JVP`. Members'
    parameters are stacked along axis 0.
    """

    def kernel(
        self, critic: nn.Module, params: Params, obs: Tensor, action: Tensor, generator: torch.Generator
    ) -> Tensor:
        """J_e J_eᵀ of every member, ``[E, M, M]``; one backward pass serves all, as members share no parameter."""

        def per_member(p: Params, one_obs: Tensor, one_action: Tensor) -> tuple[Tensor, Tensor]:
            values = action_values(critic, p, one_obs[None], one_action[None])[:, 0]
            return values.sum(), values

        gradients, values = vmap(grad(per_member, has_aux=True), (None, 0, 0))(params, obs, action)
        members = values.shape[1]
        blocks = [block.transpose(0, 1) for block in member_blocks(gradients, members)]
        return torch.stack([block @ block.mT for block in blocks]).sum(0)


@dataclass(frozen=True)
class Layerwise(KernelEstimate):
    """K_ij = Σ_layers (x_iᵀx_j + 1)·(δ_iᵀδ_j) for input x and δ = ∂Q/∂(x W + b) of every layer, ``[E, M, M]``.

    The gradient of one sample's Q in W is the outer product x δᵀ (and δ in b), so K needs neither per-sample gradients
    nor random directions: exact to rounding, for about one forward and one backward pass, and differentiable again at
    two more. For critics all of whose parameters belong to batched linear layers, ``x [E, M, in] → x @ weight + bias``
    with a weight ``[E, in, out]`` and a bias ``[E, 1, out]``, each used once and on samples apart, such as
    :class:`~lit_metarl.nn.EnsembleCriticMLP`; any other takes :class:`JVP`.
    """

    def kernel(
        self, critic: nn.Module, params: Params, obs: Tensor, action: Tensor, generator: torch.Generator
    ) -> Tensor:
        """J_e J_eᵀ of every member, ``[E, M, M]``. Raises ``ConfigError`` for a critic with other parameters."""
        layers = {name: module for name, module in critic.named_modules() if _is_batched_linear(module)}
        other = sorted(params.keys() - {f"{name}.{own}" for name in layers for own in ("weight", "bias")})
        require(not other, "derivative", "Layerwise", f"{', '.join(other)} is in no batched linear layer; use JVP")

        def total(biases: Params) -> tuple[Tensor, Params]:
            seen: Params = {}

            def remember(name: str, layer: nn.Module, inputs: tuple[Tensor]) -> None:
                require(name not in seen, "derivative", "Layerwise", f"{name} is used more than once; use JVP")
                seen[name] = inputs[0]

            hooks = [layer.register_forward_pre_hook(partial(remember, name)) for name, layer in layers.items()]
            try:
                return action_values(critic, params | biases, obs, action).sum(), seen
            finally:
                for hook in hooks:
                    hook.remove()

        # A bias of its own for every sample: its gradient is δ.
        biases = {f"{n}.bias": params[f"{n}.bias"].expand(-1, len(obs), -1) for n in layers}
        deltas, seen = grad(total, has_aux=True)(biases)
        products = [(seen[n] @ seen[n].mT + 1.0) * (deltas[f"{n}.bias"] @ deltas[f"{n}.bias"].mT) for n in layers]
        return torch.stack(products).sum(0)


def _is_batched_linear(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    if own.keys() != {"weight", "bias"} or own["weight"].ndim != 3:
        return False
    members, _, width = own["weight"].shape
    return own["bias"].shape == (members, 1, width)


class Sketch(KernelEstimate):
    """K ≈ D Dᵀ/S with D the derivatives along S standard normal directions (Eq. 13), ``[E, M, M]``.

    The mean over directions is taken *before* anything nonlinear: squaring each product first, as Eq. 14 does, has the
    expectation K_ii K_jj + 2 K_ij², whose minimum is a diagonal of zero. Off-diagonal elements have a noise of about
    K_ii/√S, so a sketch reads no ratio above about 1.25·√S, however good the kernel is.

    Attributes:
        directions: S.
    """

    directions: int

    @abstractmethod
    def along(self, critic: nn.Module, params: Params, obs: Tensor, action: Tensor, directions: Params) -> Tensor:
        """D ``[S, E, M]``: derivatives of Q in the parameters along ``directions``, fields ``[S, ...]``."""

    def kernel(
        self, critic: nn.Module, params: Params, obs: Tensor, action: Tensor, generator: torch.Generator
    ) -> Tensor:
        """An unbiased estimate of J_e J_eᵀ, ``[E, M, M]``, along fresh directions."""
        directions = normal_directions(params, self.directions, generator)
        derivative = self.along(critic, params, obs, action, directions)
        return torch.einsum("sem,sen->emn", derivative, derivative) / self.directions


@dataclass(frozen=True)
class JVP(Sketch):
    """Jacobian-vector products in forward mode, ``[E, M, M]``: Eq. 13 in the limit μ → 0, exact in float32.

    Attributes:
        directions: S.
    """

    directions: int = 32

    def __post_init__(self) -> None:
        require(self.directions >= 1, "directions", self.directions, "at least one is needed")

    def along(self, critic: nn.Module, params: Params, obs: Tensor, action: Tensor, directions: Params) -> Tensor:
        """The derivatives ∇Qᵀ U, ``[S, E, M]``, by forward mode."""
        return directional_derivatives(lambda p: action_values(critic, p, obs, action), params, directions)


@dataclass(frozen=True)
class FiniteDifference(Sketch):
    """(Q_{w+μU} − Q_w)/μ as in Eq. 13 and 14, ``[E, M, M]``, computed in float64. For comparison; use :class:`JVP`.

    At the published μ = 1e-8 float32 values are wrong by a third and their gradient is noise. In float64 values are
    right, but every ReLU that switches between w and w + μU adds a term of order 1/μ to the gradient. With 2 × 256
    units and 128 samples few do at μ = 1e-8: the gradient of an objective is mostly that of :class:`JVP`, but that of
    the log cosine is more than 10, and up to 25,000 times as long in one minibatch of twenty, so that meta-updates
    destroy the critic sooner or later. At 1e-6 the cosine of both gradients of the log ratio is 0.05 and the norm 18
    times larger, at 1e-4 0.2 and 5 times.

    Attributes:
        directions: S; the paper's M = 10.
        mu: μ.
    """

    directions: int = 10
    mu: float = 1e-8

    def __post_init__(self) -> None:
        require(self.directions >= 1, "directions", self.directions, "at least one is needed")
        require(self.mu > 0, "mu", self.mu, "a difference needs a positive step")

    def along(self, critic: nn.Module, params: Params, obs: Tensor, action: Tensor, directions: Params) -> Tensor:
        """Forward differences, ``[S, E, M]`` float64. Raises ``ConfigError`` if the critic rounds to another dtype."""
        start = {name: value.double() for name, value in params.items()}
        origin = action_values(critic, start, obs, action)
        if origin.dtype != torch.float64:
            raise ConfigError(
                f"derivative = FiniteDifference cannot be used: the critic answers in {origin.dtype} to float64 "
                "parameters, and the difference is below its rounding; use JVP, or a critic that keeps float64."
            )

        def shifted(direction: Params) -> Tensor:
            moved = {name: value + self.mu * direction[name].double() for name, value in start.items()}
            return action_values(critic, moved, obs, action)

        return (vmap(shifted)(directions) - origin) / self.mu


def directional_derivatives(values: Callable[[Params], Tensor], params: Params, directions: Params) -> Tensor:
    """Derivatives of ``values``, parameters → ``[E, M]``, along ``directions``, fields ``[S, ...]``: ``[S, E, M]``."""
    return vmap(lambda direction: jvp(values, (params,), (direction,))[1])(directions)


def normal_directions(params: Params, count: int, generator: torch.Generator) -> Params:
    """U ~ N(0, I) of Eq. 12, like ``params`` with a leading axis ``[count, ...]``, drawn where the generator lives."""
    return {
        name: torch.randn(count, *value.shape, generator=generator, device=generator.device, dtype=value.dtype).to(
            value.device
        )
        for name, value in params.items()
    }


def member_blocks(stack: Params, members: int) -> list[Tensor]:
    """Parameters with a leading axis, ``[S, E, ...]`` by name, as one ``[S, E, P_b]`` for every name (layout of Eq. 6).

    Raises:
        ValueError: members that are not stacked behind that axis; a single member has no such axis.
    """
    for name, block in stack.items():
        if members > 1 and block.shape[1:2] != (members,):
            raise ValueError(
                f"Parameter {name} {list(block.shape[1:])} is not stacked over {members} members: use JVP."
            )
    return [block.reshape(block.shape[0], members, -1) for block in stack.values()]


def action_values(critic: nn.Module, params: Params, obs: Tensor, action: Tensor) -> Tensor:
    """Q_w ``[E, M]`` of Eq. 1, with inputs in the parameters' dtype."""
    dtype = next(iter(params.values())).dtype
    return functional_call(critic, params, (obs.to(dtype), action.to(dtype)))
