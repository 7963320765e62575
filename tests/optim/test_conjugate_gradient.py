"""Conjugate gradients: the direct solution, early stops, nothing but finite numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_metarl.optim import conjugate_gradient


def system(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random symmetric positive definite matrix with eigenvalues in [0.1, 10], and a right-hand side; float64."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]
    spectrum = torch.logspace(-1, 1, size, dtype=torch.float64)
    return basis * spectrum @ basis.T, torch.randn(size, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_direct_solve(seed: int, damping: float) -> None:
    matrix, b = system(12, seed)
    expected = torch.linalg.solve(matrix + damping * torch.eye(12, dtype=b.dtype), b)
    x = conjugate_gradient(lambda v: matrix @ v, b, iterations=20, damping=damping, residual_tol=1e-24)
    torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8)


def test_the_solution_has_no_graph() -> None:
    matrix, b = system(4, 0)
    x = conjugate_gradient(lambda v: matrix.requires_grad_() @ v, b.requires_grad_())
    assert not x.requires_grad


def test_stops_at_the_tolerance_whatever_the_scale() -> None:
    matrix, b = system(12, 0)
    for scale in (1e-8, 1.0, 1e8):
        x = conjugate_gradient(lambda v: matrix @ v, scale * b, iterations=100, residual_tol=1e-4)
        residual = (scale * b - matrix @ x).norm() / (scale * b).norm()
        assert 1e-8 < residual <= 1e-2


def test_as_many_products_as_distinct_eigenvalues() -> None:
    products = []

    def hvp(v: Tensor) -> Tensor:
        products.append(v)
        return torch.tensor([2.0, 2.0, 5.0]) * v

    b = torch.tensor([1.0, -3.0, 4.0])
    torch.testing.assert_close(conjugate_gradient(hvp, b), b / torch.tensor([2.0, 2.0, 5.0]))
    assert len(products) == 2
    assert torch.equal(b, torch.tensor([1.0, -3.0, 4.0]))
    products.clear()
    assert not conjugate_gradient(hvp, torch.zeros(3)).any()
    assert not products


def test_every_truncation_is_an_ascent_direction_with_the_galerkin_identity() -> None:
    matrix, b = system(12, 1)
    for iterations in range(1, 8):
        x = conjugate_gradient(lambda v: matrix @ v, b, iterations)
        assert x.dot(b) > 0
        torch.testing.assert_close(x.dot(matrix @ x), x.dot(b))  # what the length of a trust-region step relies on


@pytest.mark.parametrize("curvature", [0.0, -1.0, float("nan"), float("inf")])
def test_no_positive_curvature_ends_it(curvature: float) -> None:
    diagonal = torch.tensor([1.0, 1.0, curvature])
    # The first direction is finite in the first two components; the third is met at once.
    x = conjugate_gradient(lambda v: diagonal * v, torch.tensor([1.0, 1.0, 5.0]))
    assert torch.isfinite(x).all()


def test_negative_curvature_ends_it_at_the_last_good_iterate() -> None:
    diagonal, b = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.5])
    # Along b the curvature is 2 − 1/4; conjugate to it only negative ones are left.
    torch.testing.assert_close(conjugate_gradient(lambda v: diagonal * v, b), 1.25 / 1.75 * b)
    assert torch.equal(conjugate_gradient(lambda v: -v, b), torch.zeros(2))


def test_a_singular_matrix_is_solved_in_its_range() -> None:
    x = conjugate_gradient(lambda v: torch.tensor([4.0, 0.0]) * v, torch.tensor([2.0, 0.0]))
    assert torch.equal(x, torch.tensor([0.5, 0.0]))
