"""Layers for derivatives of derivatives on a CPU: few passes over memory, fast matrix products."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def intel() -> bool:
    """Whether this machine's processor is one of Intel's, where the system tells."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return "GenuineIntel" in lines.read(1000)
    except OSError:
        return False


WORTHWHILE = 1_000_000
"""Multiplications of a matrix product from which on oneDNN's is worth a call of its own."""

WORTHWHILE_FOR_ALL = inf if intel() else 10_000_000
"""Multiplications of one member's product from which on oneDNN beats a batched product of a whole ensemble.

A batched product is MKL's: on Intel's own processors it is the faster one at every size, on AMD's below this one.
"""

LARGE = 100_000
"""Numbers from which on a call of a function's own costs nothing beside the passes over memory that it saves."""


def fused_tanh(x: Tensor) -> Tensor:
    """tanh(x) element-wise as 2σ(2x) − 1, with derivatives that take few passes over memory; ``[...]`` → ``[...]``."""
    if not (torch.is_grad_enabled() or x.numel() >= LARGE):
        return 2.0 * torch.sigmoid(2.0 * x) - 1.0  # acting: many small calls, without the cost of a function's own
    result: Tensor = _Tanh.apply(x)
    return result


class _Tanh(torch.autograd.Function):
    """2σ(2x) − 1, with the derivative of tanh."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (2.0 * x).sigmoid_().mul_(2.0).sub_(1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep y = tanh(x), of which the derivative is 1 − y²."""
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """(1 − y²)·gradient."""
        return _TanhBackward.apply(gradient, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        """(1 − y²)·tangent."""
        return _TanhBackward.apply(tangent, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        """All of a map at once: the function is element-wise."""
        return _Tanh.apply(x), in_dims[0]


class _TanhBackward(torch.autograd.Function):
    """(1 − y²)·g."""

    @staticmethod
    def forward(g: Tensor, y: Tensor) -> Tensor:
        return torch.ops.aten.tanh_backward(g, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep g and y."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)
        ctx.curvature = None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """(1 − y²)·gradient and −2gy·gradient."""
        g, y = ctx.saved_tensors
        of_y = None
        if ctx.needs_input_grad[1]:
            # A Hessian is multiplied with many vectors: what is the same for all is computed once.
            curvature = -2.0 * g * y if ctx.curvature is None or torch.is_grad_enabled() else ctx.curvature
            ctx.curvature = None if torch.is_grad_enabled() else curvature
            of_y = curvature * gradient
        return _TanhBackward.apply(gradient, y), of_y

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dy: Tensor | None) -> Tensor:
        """(1 − y²)·dg − 2gy·dy."""
        g, y = ctx.saved_tensors
        tangent: Tensor = _TanhBackward.apply(torch.zeros_like(g) if dg is None else dg, y)
        return tangent if dy is None else tangent - 2.0 * g * y * dy

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], g: Tensor, y: Tensor) -> tuple[Tensor, int]:
        """All of a map at once: the function is element-wise."""
        pairs = zip((g, y), in_dims, strict=True)
        g, y = (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in pairs)
        return _TanhBackward.apply(g, y), 0


class Linear(nn.Linear):
    """``torch.nn.Linear`` of which the first two derivatives are faster where the CPU computes them in full precision.

    The values are the same to rounding. It is torch's own without a bias, and for a few rows if nothing is
    differentiated.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[..., I]`` → ``[..., O]``."""
        full = input.device.type == "cpu" and input.dtype == self.weight.dtype in (torch.float32, torch.float64)
        worthwhile = torch.is_grad_enabled() or input.numel() * self.out_features >= WORTHWHILE
        if self.bias is None or not full or torch.is_autocast_enabled("cpu") or not worthwhile:
            return F.linear(input, self.weight, self.bias)
        rows = input.reshape(1, -1, input.shape[-1])
        y = _Affine.apply(rows, self.weight.unsqueeze(0), self.bias.unsqueeze(0))
        return y.reshape(*input.shape[:-1], y.shape[-1])


def large_product(x: Tensor, weight: Tensor) -> bool:
    """Whether ``x [B, M, I]`` times ``weight [B, I, O]`` is worth :func:`affine`: on a CPU, large, in float32."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return plain and x[0].numel() * weight.shape[-1] >= WORTHWHILE_FOR_ALL and not torch.is_autocast_enabled("cpu")


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b of B layers, ``[B, M, I]``, ``[B, I, O]``, ``[B, O]`` → ``[B, M, O]``, by oneDNN where that is faster."""
    result: Tensor = _Affine.apply(x, weight.mT, bias)
    return result


class _Affine(torch.autograd.Function):
    """x Wᵀ + b of B layers: ``[B, M, I]``, ``[B, O, I]``, ``[B, O]`` or None → ``[B, M, O]``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight.mT, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep x and W."""
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, W and b."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = _AffineBackward.apply(gradient, x, weight, ctx.needs_input_grad[0])
        return of_x, of_weight, of_bias if ctx.needs_input_grad[2] else None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None) -> Tensor:
        """dx Wᵀ + x dWᵀ + db."""
        x, weight = ctx.saved_tensors
        dx, dweight = (
            torch.zeros_like(x) if dx is None else dx,
            torch.zeros_like(weight) if dweight is None else dweight,
        )
        tangent: Tensor = _Affine.apply(dx, weight, None) + _Affine.apply(x, dweight, dbias)
        return tangent

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        """The mapped layers beside each other; of one layer for all, the mapped rows below each other."""
        if in_dims[0] is not None and in_dims[1] is in_dims[2] is None:
            rows = x.movedim(in_dims[0], 1)
            return _Affine.apply(rows.flatten(1, 2), weight, bias).unflatten(1, rows.shape[1:3]), 1
        folded = [_fold(t, dim, info.batch_size) for t, dim in zip((x, weight, bias), in_dims, strict=True)]
        return _unfold(_Affine.apply(*folded), info.batch_size), 0


class _AffineBackward(torch.autograd.Function):
    """Gradients of :class:`_Affine`: g, x, W → g W (None if not asked for), gᵀ x, Σ g."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, weight: Tensor, of_input: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        # A product with few columns costs several times that of its transpose with few rows. The result lies in memory
        # as W does, which optimizers ask for: W of an ensemble is the transpose of a parameter.
        transposed = weight.stride(-2) == 1 < weight.stride(-1)
        slope = _product(x.mT, g).mT if transposed or g.shape[-1] > x.shape[-1] else _product(g.mT, x)
        slope = slope if transposed else slope.contiguous()
        return _product(g, weight) if of_input else None, slope, g.sum(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        """Keep g, x and W."""
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])
        ctx.set_materialize_grads(False)
        ctx.of_input = inputs[3]

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None) -> tuple[Any, ...]:
        """Gradients of g, x and W: dx Wᵀ + x dWᵀ + db, g dW and gᵀ dx."""
        g, x, weight = ctx.saved_tensors
        of_g = of_x = of_weight = None
        if dweight is not None:
            of_g = _Affine.apply(x, dweight, dbias)
        elif dbias is not None:
            of_g = dbias.unsqueeze(-2).expand_as(g)
        if dx is not None:
            through = _Affine.apply(dx, weight, None)
            of_g = through if of_g is None else of_g + through
        need_x = ctx.needs_input_grad[1] and dweight is not None
        if ctx.needs_input_grad[2] and dx is not None:
            of_x, of_weight, _ = _AffineBackward.apply(g, dx, weight if dweight is None else dweight, need_x)
        elif need_x and dweight is not None:
            of_x = _Affine.apply(g, dweight.mT, None)
        return of_g, of_x, of_weight, None

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dx: Tensor | None, dweight: Tensor | None, _: None) -> tuple[Any, ...]:
        """Tangents of g W, gᵀ x and Σ g."""
        g, x, weight = ctx.saved_tensors
        dg, dx, dweight = (torch.zeros_like(t) if d is None else d for t, d in ((g, dg), (x, dx), (weight, dweight)))
        moved = _AffineBackward.apply(dg, x, weight, ctx.of_input)
        fixed = _AffineBackward.apply(g, dx, dweight, ctx.of_input)
        return moved[0] + fixed[0] if ctx.of_input else None, moved[1] + fixed[1], moved[2]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], g: Tensor, x: Tensor, weight: Tensor, of_input: bool
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        """The mapped layers beside each other."""
        folded = [_fold(t, dim, info.batch_size) for t, dim in zip((g, x, weight), in_dims, strict=False)]
        result = _AffineBackward.apply(*folded, of_input)
        return tuple(None if t is None else _unfold(t, info.batch_size) for t in result), tuple(
            None if t is None else 0 for t in result
        )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``[B, M, K]`` times ``[B, K, N]``, plus ``bias [B, N]``."""
    batch, rows, inner = a.shape
    if a.dtype == torch.float32 and rows * inner * b.shape[-1] >= WORTHWHILE and ONEDNN:
        biases = [None] * batch if bias is None else bias.unbind()
        each = [ONEDNN(x, y, z, "none", [], "") for x, y, z in zip(a.unbind(), b.mT.unbind(), biases, strict=True)]
        return each[0].unsqueeze(0) if batch == 1 else torch.stack(each)
    return torch.bmm(a, b) if bias is None else torch.baddbmm(bias.unsqueeze(-2), a, b)


def _fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """A mapped tensor ``[B, ...]`` with the mapped axis in B."""
    if tensor is None:
        return None
    mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return mapped.flatten(0, 1)


def _unfold(tensor: Tensor, size: int) -> Tensor:
    return tensor.unflatten(0, (size, -1))


def _onednn() -> Any:
    """oneDNN's product of matrices; None where torch is built without."""
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return torch.ops.mkldnn._linear_pointwise if available else None


ONEDNN = _onednn()
