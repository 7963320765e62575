"""Means of metrics: counts per name, episodes, and what a checkpoint holds of them."""

from __future__ import annotations

import io

import torch

from lit_metarl.algorithms.metrics import MeanMetrics

CPU = torch.device("cpu")


def counted() -> MeanMetrics:
    metrics = MeanMetrics()
    for step in range(1, 5):
        metrics.add({"critic": torch.tensor(float(step))} | ({"actor": torch.tensor(10.0 * step)} if step % 2 else {}))
    metrics.add_episodes(torch.zeros(0), torch.zeros(0))
    metrics.add_episodes(torch.tensor([1.0, 4.0]), torch.tensor([3, 5]))
    metrics.add_episodes(torch.tensor([7.0]), torch.tensor([10]))
    return metrics


def test_a_mean_is_over_the_updates_that_produced_it() -> None:
    metrics = counted()
    assert metrics.pop(CPU) == {"critic": 2.5, "actor": 20.0, "return": 4.0, "episode_length": 6.0}
    assert metrics.pop(CPU) == {}


def test_counting_goes_on_after_a_checkpoint() -> None:
    straight, file = counted(), io.BytesIO()
    torch.save(straight.state(), file)
    file.seek(0)
    resumed = MeanMetrics()
    resumed.load_state(torch.load(file, weights_only=True), CPU)
    for metrics in (straight, resumed):
        metrics.add({"actor": torch.tensor(2.0)})
        metrics.add_episodes(torch.tensor([0.0]), torch.tensor([2]))
    expected = straight.pop(CPU)
    assert expected["actor"] == 14.0
    assert resumed.pop(CPU) == expected


def test_a_value_that_changes_afterwards_and_one_of_half_precision_are_counted_as_they_were() -> None:
    metrics, parameter = MeanMetrics(), torch.ones(())
    for value in (1.0, 100.0):
        metrics.add({"parameter": parameter.fill_(value)})
    for _ in range(1000):
        metrics.add({"half": torch.ones((), dtype=torch.bfloat16)})
    assert metrics.pop(CPU) == {"parameter": 50.5, "half": 1.0}
