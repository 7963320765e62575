"""Distributions of tasks over one simulator."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from lit_metarl.envs.base import Array, EnvFactory, Tasks


class TaskFamily(EnvFactory):
    """A simulator and a distribution of tasks for it, as it is written in a config: a frozen dataclass.

    A family of one's own is one class: ``make`` builds environments that know ``set_tasks``, ``sample`` draws the
    parameters that it is given. Tasks are drawn anew in every meta-iteration from the stream of their split, so a
    continuous distribution never repeats one; evaluation draws from its own stream.
    """

    splits: tuple[str, ...] = ("test",)
    """Splits of meta-evaluation; a family with out-of-distribution ranges adds ``out_of_distribution``."""

    @abstractmethod
    def sample(self, num_tasks: int, generator: np.random.Generator, split: str = "train") -> Tasks:
        """Parameters of ``num_tasks`` tasks, each ``[B, ...]``, as ``BatchedEnv.set_tasks`` takes them.

        Args:
            num_tasks: B.
            generator: the only source of randomness.
            split: ``train`` or ``test`` (the same distribution, another stream) or ``out_of_distribution``.
        """

    def context(self, tasks: Tasks) -> Array:
        """Oracle context ``[B, C]`` float32: what a policy that is told the task sees, scaled to about [-1, 1].

        By default all parameters, flattened and joined in the order of their names.
        """
        rows = [np.asarray(tasks[name], dtype=np.float32) for name in sorted(tasks)]
        return np.concatenate([row.reshape(len(row), -1) for row in rows], axis=1)

    def shaped_reward(self, tasks: Tasks, before: Array, after: Array) -> Array:
        """Denser reward ``[n]`` of ``n`` steps for training alone, where a family has one; it may know the tasks.

        Tasks with sparse rewards are hard to learn, not to recognise: training on this reward leaves what is inferred
        from, and all that is reported, to the reward that the environment pays (Rakelly et al. 2019, section 6.3).

        Args:
            tasks: parameters ``[n, ...]``, one row per step.
            before: observations ``[n, O]``.
            after: their successors ``[n, O]``.
        """
        raise ValueError(f"{type(self).__name__} has no shaped reward.")
