"""Evaluation of a checkpoint in one call, as ``lit-metarl test`` does it and without a config or a store."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from lit_metarl.checkpoint import read_checkpoint
from lit_metarl.data.collector import run_episodes
from lit_metarl.data.meta_evaluation import TaskDataModule
from lit_metarl.data.streams import Stream, derive_seed
from lit_metarl.envs.base import BatchedEnv, EnvError, EnvFactory
from lit_metarl.envs.gym import GymEnv, Gymnasium
from lit_metarl.envs.tasks import TaskFamily
from lit_metarl.nn.recipe import from_recipe
from lit_metarl.policy import TrainedPolicy, find_checkpoint, policy_of
from lit_metarl.types import ConfigError, MetaEpisodes, require

EPISODES = 30  # of a checkpoint that does not say how many a test has
Config = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Complete episodes of a policy that takes its most likely actions.

    Attributes:
        env: name of the environment.
        returns: ``[N]`` undiscounted, float32.
        lengths: ``[N]`` agent steps, int64.
    """

    env: str
    returns: np.ndarray = field(repr=False)
    lengths: np.ndarray = field(repr=False)

    @property
    def mean(self) -> float:
        """Mean of the returns."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns, as ``test/return_std``: divided by N."""
        return float(self.returns.std())

    def __str__(self) -> str:
        return f"{self.env}: return {self.mean:.1f} ± {self.std:.1f} in {len(self.returns)} episodes"


@dataclass(frozen=True, eq=False)
class MetaEvaluation:
    """Episodes of a meta-learner on test tasks, before and after each of ``K`` adaptation steps.

    Attributes:
        env: name of the environment.
        returns: split → ``[K + 1, B, N]`` undiscounted, float32, of N episodes of each of B tasks after 0 … K steps.
        tasks: split → parameter → ``[B, ...]``.
        random: split → ``[B, N]`` returns of uniformly random actions on the same tasks.
    """

    env: str
    returns: Mapping[str, np.ndarray] = field(repr=False)
    tasks: Mapping[str, Mapping[str, np.ndarray]] = field(repr=False)
    random: Mapping[str, np.ndarray] = field(repr=False)

    def after(self, steps: int, split: str = "test") -> float:
        """Mean return after so many adaptation steps; -1 for all of them."""
        return float(self.returns[split][steps].mean())

    @property
    def mean(self) -> float:
        """Mean return after adaptation on the tasks of the split ``test``."""
        return self.after(-1)

    def __str__(self) -> str:
        steps, tasks, _ = self.returns["test"].shape
        curve = " → ".join(f"{self.after(k):.1f}" for k in range(steps))
        return f"{self.env}: return {curve} after 0 … {steps - 1} adaptation steps, on {tasks} tasks"


def evaluate(
    checkpoint: str | Path,
    env: Any = None,
    episodes: int | None = None,
    seed: int | None = None,
    adaptation_steps: int | None = None,
    root: str | Path = "mlruns",
) -> Evaluation | MetaEvaluation:
    """Evaluate a checkpoint: the same episodes, to the bit, as ``lit-metarl test`` has with the same seed.

    Nothing is written. The result depends on the seed alone, unless an environment draws from a stream of its own. A
    policy of single tasks takes its most likely actions; a meta-learner adapts to test tasks, with sampled actions;
    PEARL's are the most likely ones unless it is set otherwise.

        result = lit_metarl.evaluate("mlruns/runs/<run id>/best.ckpt", episodes=10)
        result.mean, result.returns, result.lengths

    Args:
        checkpoint: a ``.ckpt`` file, or the id of a run in ``root``, whose ``best.ckpt`` is taken.
        env: where; the environment of the training if None. As a config names it (``{"class_path": …, "init_args":
            …}``) or that object (``DMControl("walker/run")``); a Gymnasium id or class path; a function that makes a
            ``gymnasium.Env``; or one such environment, whose episodes are then run one after the other. For a
            meta-learner a :class:`~lit_metarl.envs.tasks.TaskFamily`.
        episodes: N; for a meta-learner B, test tasks, each with as many episodes as in training. As many as ``test``
            has in the config of the training if None.
        seed: of environments, tasks and sampled actions; that of the training if None.
        adaptation_steps: K, for a meta-learner; as in the evaluations of the training if None.
        root: folder of the store that a run id is looked up in.

    Raises:
        CheckpointError: no such file or run, or a file that this package did not write.
        ConfigError: an environment that is unknown or has other spaces than the policy, a setting that cannot work,
            or a checkpoint without a config (of a Trainer of one's own) where one is needed.
    """
    path = find_checkpoint(checkpoint, root)
    saved = read_checkpoint(path)
    config: Config = yaml.safe_load(saved["run"]["config"]) if "run" in saved else {}
    data = config.get("data", {"class_path": "", "init_args": {}})
    require(episodes is None or episodes >= 1, "episodes", episodes, "it must be at least 1")
    if env is None:
        require(bool(config), "env", env, f"{path} does not say which environment it was trained in; name one")
        env = data["init_args"]["env"]
    env = _as_factory(env)
    if _learns_to_adapt(data["class_path"]):
        given = {"test_tasks": episodes, "eval_adaptation_steps": adaptation_steps, "seed": seed}
        changes = {"env": env} | {key: value for key, value in given.items() if value is not None}
        return _of_meta_learner(config, saved["state_dict"], changes)
    remedy = "this policy was not trained to adapt; leave it out"
    require(adaptation_steps is None, "adaptation_steps", adaptation_steps, remedy)
    count = episodes or data["init_args"].get("test_episodes", EPISODES)
    root_seed = config.get("seed_everything", 0) if seed is None else seed
    return _of_policy(policy_of(saved, path), env, count, derive_seed(root_seed, 0, Stream.TEST_ENV))


def _as_factory(env: Any) -> Any:
    if isinstance(env, str):
        return Gymnasium(env)
    if not isinstance(env, Mapping):
        return env
    keys = {"class_path", "init_args"}
    require(set(env) <= keys and "class_path" in env, "env", dict(env), "write {'class_path': …, 'init_args': {…}}")
    return from_recipe({"class_path": env["class_path"], "init_args": env.get("init_args") or {}})


def _learns_to_adapt(class_path: str) -> bool:
    """Whether the DataModule of that class path is for meta-learners; an unknown one is not."""
    try:
        cls = pkgutil.resolve_name(class_path)
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(cls, type) and issubclass(cls, TaskDataModule)


# A policy of single tasks --------------------------------------------------------------------------------------------


def _of_policy(policy: TrainedPolicy, env: Any, episodes: int, seed: int) -> Evaluation:
    made = not _is_gymnasium(env)
    simulator = _make(env, episodes, seed)
    try:
        _check_spaces(policy, simulator)

        def act(obs: Tensor) -> Tensor:
            return torch.from_numpy(policy(obs.numpy()))

        runs = [run_episodes(simulator, act) for _ in range(episodes // simulator.num_envs)]
    finally:
        if made:
            simulator.close()
    returns, lengths = (torch.cat(rows).numpy() for rows in zip(*(run[:2] for run in runs), strict=True))
    return Evaluation(simulator.spec.name, returns, lengths)


def _make(env: Any, episodes: int, seed: int) -> BatchedEnv:
    """``episodes`` environments, or the one that was given."""
    try:
        if isinstance(env, EnvFactory):
            return env.make(episodes, seed)
        if callable(env) or _is_gymnasium(env):
            envs = [env] if _is_gymnasium(env) else [env() for _ in range(episodes)]
            kind = type(getattr(envs[0], "unwrapped", envs[0]))
            require(_is_gymnasium(envs[0]), "env", env, f"it makes no gymnasium.Env, but a {kind.__name__}")
            return GymEnv(kind.__name__, envs, seed)
    except ConfigError:
        raise
    except (ValueError, EnvError, ImportError) as error:
        raise ConfigError(f"env = {env!r} cannot be built: {error}") from error
    raise ConfigError(
        f"env = {env!r} is no environment: give {{'class_path': …, 'init_args': {{…}}}}, an EnvFactory, a Gymnasium "
        "id, a gymnasium.Env, or a function that makes one."
    )


def _is_gymnasium(env: object) -> bool:
    import gymnasium

    return isinstance(env, gymnasium.Env)


def _check_spaces(policy: TrainedPolicy, simulator: BatchedEnv) -> None:
    spec, sizes = simulator.spec, policy.sizes
    remedy = "the policy is told its task; evaluate the meta-learner, with its own checkpoint and task family"
    require(sizes.context == 0, "checkpoint", repr(policy), remedy)
    continuous = spec.num_actions is None
    fits = spec.num_actions == sizes.num_actions and (not continuous or spec.action_dim == sizes.action)
    actions = f"{spec.action_dim} continuous" if continuous else f"{spec.num_actions} discrete"
    has = f"it has {spec.obs_dim} observations and {actions} actions, this is a {policy!r}"
    require(spec.obs_dim == sizes.obs and fits, "env", spec.name, has)


# A meta-learner ------------------------------------------------------------------------------------------------------


def _of_meta_learner(config: Config, weights: Mapping[str, Tensor], changes: Config) -> MetaEvaluation:
    remedy = "a meta-learner adapts to tasks, so it is evaluated on a TaskFamily; load_policy gives the policy before"
    require(isinstance(changes["env"], TaskFamily), "env", changes["env"], f"{remedy} adaptation, for use elsewhere")
    module, data = _build(config, changes)
    module.load_state_dict(weights)
    data.bind(module.eval())
    episodes: MetaEpisodes = data.test()
    tasks = {split: {name: rows.numpy() for name, rows in found.items()} for split, found in episodes.tasks.items()}
    returns, random = ({split: x.numpy() for split, x in of.items()} for of in (episodes.returns, episodes.random))
    return MetaEvaluation(data.spec.name, returns, tasks, random)


def _build(config: Config, changes: Config) -> tuple[Any, Any]:
    """Module and DataModule of a run's ``config``, with other arguments of the DataModule where ``changes`` has them.

    Raises:
        ConfigError: a class that is unknown, or arguments that it does not take.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from lit_metarl.algorithms.base import Algorithm
    from lit_metarl.cli import OF_SIMULATOR
    from lit_metarl.errors import cause_of, one_line

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Algorithm, "model")
    parser.add_subclass_arguments(TaskDataModule, "data")
    given = config["model"].get("init_args", {})
    own = {key: value for key, value in given.items() if key not in OF_SIMULATOR}  # the DataModule knows these
    for name in OF_SIMULATOR:
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
    sections = {
        "model": config["model"] | {"init_args": own},
        "data": config["data"] | {"init_args": config["data"]["init_args"] | changes},
    }
    try:
        objects = parser.instantiate(parser.parse_object(sections))
    except (ArgumentError, ValueError) as error:
        cause = cause_of(error, (ConfigError,))
        raise ConfigError(f"the run cannot be built from its config: {cause or one_line(str(error))}") from error
    return objects.model, objects.data
