"""Critics that keep the dtype of their parameters, and their Jacobian one element at a time."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from lit_metarl.nn.mlp import ensemble_mlp

OBS, ACTION = 3, 2


class SmallCritic(nn.Module):
    """``E`` members of two hidden layers, every parameter random; ``output_scale`` multiplies Q."""

    def __init__(self, members=1, hidden=(6, 5), smooth=False, seed=0, dtype=torch.float64):
        super().__init__()
        self.members, self.output_scale = members, 1.0
        layers = ensemble_mlp(members, [OBS + ACTION, *hidden, 1])
        self.trunk = nn.Sequential(*(nn.Tanh() if smooth and isinstance(m, nn.ReLU) else m for m in layers)).to(dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=generator, dtype=dtype) / value.shape[1] ** 0.5)

    def forward(self, obs, action):
        x = torch.cat([obs, action], dim=-1).expand(self.members, -1, -1)
        return self.output_scale * self.trunk(x).squeeze(-1)


class LinearCritic(nn.Module):
    """Q_e = w_eᵀ(obs, action): the Jacobian of every member is the inputs."""

    def __init__(self, features, members=1, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(members, features, dtype=dtype))

    def forward(self, obs, action):
        return self.w @ torch.cat([obs, action], dim=-1).T


class SharedTrunkCritic(nn.Module):
    """Two heads on one hidden layer: members that share parameters."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(OBS + ACTION, 4, dtype=torch.float64)
        self.heads = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, obs, action):
        return self.heads(self.trunk(torch.cat([obs, action], dim=-1)).tanh()).T


def params_of(critic):
    return {name: value.detach().clone() for name, value in critic.named_parameters()}


def inputs(size, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, width, generator=generator, dtype=dtype) for width in (OBS, ACTION))


def explicit_jacobian(critic, params, obs, action, create_graph=False):
    """``[E, M, P]``, every row its own backward pass through all parameters, those of other members included."""
    if not create_graph:
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
    values = functional_call(critic, params, (obs, action))

    def row(value):
        grads = torch.autograd.grad(
            value, list(params.values()), retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
        return torch.cat([g.reshape(-1) for g in grads])

    return torch.stack([torch.stack([row(value) for value in member]) for member in values])


def explicit_kernel(critic, params, obs, action, create_graph=False):
    jacobian = explicit_jacobian(critic, params, obs, action, create_graph)
    return jacobian @ jacobian.mT
