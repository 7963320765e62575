"""One contract of every simulator, whichever adapter brings it: what ``BatchedEnv`` promises, checked from outside.

What an adapter adds (its dynamics and rewards, what it refuses by name) is tested beside it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from dm_control import suite
from oracles import assert_identical
from own_families import CartGoal, ReachTasks, Ring
from resume_cases import Case, actions, assert_goes_on, env_case

import lit_metarl.envs
from lit_metarl.envs.base import BatchedEnv, EnvError, EnvFactory, one_torch_thread
from lit_metarl.envs.gym import GymEnv, Gymnasium
from lit_metarl.envs.linear_quadratic import LinearQuadratic
from lit_metarl.envs.locomotion import Locomotion, MuJoCo
from lit_metarl.envs.locomotion_tasks import Direction, Direction2D, Goal, RandomParameters, Velocity
from lit_metarl.envs.navigation import Corners, Momentum, Navigation2D, Point1D, PointRobot, SparsePointRobot
from lit_metarl.envs.points import PointEnv
from lit_metarl.envs.rendering import rendering_available
from lit_metarl.envs.suite import DMControl, SuiteEnv
from lit_metarl.envs.tabular import TabularEnv, TabularTasks
from lit_metarl.envs.tasks import TaskFamily

NUM = 3  # environments
STEPS = 30  # of a rollout in which every kind of end is seen
FEW = 5  # of one in which some episodes end


@dataclass(frozen=True)
class Adapter:
    """A simulator and what its rollouts are to show.

    Attributes:
        factory: of the environments.
        ends: how their episodes end within ``STEPS`` random steps; those of the suite are longer.
        random: whether an episode draws anything from its environment's stream.
    """

    factory: EnvFactory
    ends: str = "truncated"
    random: bool = True

    @property
    def has_tasks(self) -> bool:
        return isinstance(self.factory, TaskFamily)

    def make(self, num_envs: int = NUM, seed: int = 1, tasks: int = 0) -> BatchedEnv:
        """Fresh environments; those of a family have tasks, of which the first ones do not depend on ``num_envs``."""
        env = self.factory.make(num_envs, seed)
        if self.has_tasks:
            env.set_tasks({name: rows[:num_envs] for name, rows in self.tasks(tasks).items()})
        return env

    def tasks(self, seed: int, num_envs: int = NUM + 1) -> dict[str, np.ndarray]:
        return dict(self.factory.sample(num_envs, np.random.default_rng(seed)))


BOTH = "terminated truncated"
LIMIT = {"max_episode_steps": 5}
ADAPTERS = {
    "half_cheetah": Adapter(MuJoCo("half_cheetah", 5, threads=2)),
    "hopper": Adapter(MuJoCo("hopper", 25, threads=1), BOTH),
    "pendulum": Adapter(DMControl("pendulum/swingup", 2), ends=""),
    "Pendulum-v1": Adapter(Gymnasium("Pendulum-v1", LIMIT)),
    "CartPole-v1": Adapter(Gymnasium("CartPole-v1", {"max_episode_steps": 18}), BOTH),
    "HalfCheetah-v5": Adapter(Gymnasium("HalfCheetah-v5", LIMIT)),
    "navigation_2d": Adapter(Navigation2D(**LIMIT), random=False),
    "corners": Adapter(Corners(**LIMIT, reward_kind="dense")),
    "momentum": Adapter(Momentum(**LIMIT, reward_kind="dense")),
    "point_1d": Adapter(Point1D()),
    "point_robot": Adapter(PointRobot()),
    "sparse_point_robot": Adapter(SparsePointRobot(goal_radius=0.99), random=False),  # paid soon
    "linear_quadratic": Adapter(LinearQuadratic(**LIMIT)),
    "tabular": Adapter(TabularTasks(5, 3, 9, concentration=0.5, num_terminal=1), BOTH),
    "direction": Adapter(Direction(**LIMIT)),
    "direction_hyperl": Adapter(Direction("ant", "hyperl", as_angle=True, **LIMIT)),
    "direction_2d": Adapter(Direction2D("humanoid", max_episode_steps=20), BOTH),
    "velocity": Adapter(Velocity("walker2d", **LIMIT), BOTH),
    "goal": Adapter(Goal(**LIMIT)),
    "random_parameters": Adapter(RandomParameters("hopper", max_episode_steps=25), BOTH),
    "own_robot": Adapter(CartGoal(), "terminated"),
    "own_gymnasium": Adapter(ReachTasks()),
    "own_points": Adapter(Ring(**LIMIT), random=False),
}
each = pytest.mark.parametrize("adapter", [pytest.param(adapter, id=name) for name, adapter in ADAPTERS.items()])
each_family = pytest.mark.parametrize(
    "adapter", [pytest.param(adapter, id=name) for name, adapter in ADAPTERS.items() if adapter.has_tasks]
)


def trace(env: BatchedEnv, chosen: np.ndarray) -> list[np.ndarray]:
    """Everything that a rollout returns, each ``[E, ...]``."""
    record = [env.reset()]
    for action in chosen:
        result = env.step(action)
        record += [*result, env.reset(result.terminated | result.truncated)]
    return record


def differ(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return any(not np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@each
def test_shapes_types_and_the_bounds_of_actions(adapter: Adapter) -> None:
    env = adapter.make()
    spec, discrete = env.spec, env.spec.num_actions is not None
    obs = env.reset()
    assert env.num_envs == NUM
    assert obs.shape == (NUM, spec.obs_dim)
    low, high = (0, (spec.num_actions or 0) - 1) if discrete else (-1.0, 1.0)
    for bound in (low, high):
        result = env.step(np.full((NUM,) if discrete else (NUM, spec.action_dim), bound))
        assert [array.shape for array in result] == [obs.shape, (NUM,), (NUM,), (NUM,)]
        assert [array.dtype for array in result] == [obs.dtype, np.float64, bool, bool]
        assert obs.dtype in (np.float32, np.float64)
        assert np.isfinite(result.obs).all()
        assert np.isfinite(result.reward).all()
        env.reset(result.terminated | result.truncated)
    env.close()


@each
def test_nothing_resets_by_itself_and_ends_are_of_their_kind(adapter: Adapter) -> None:
    env, nobody, seen = adapter.make(), np.zeros(NUM, dtype=bool), set()
    limit, steps = env.spec.max_episode_steps, np.array([0, 2, 2])
    trace(env, actions(env, 2, seed=1))
    env.reset(steps == 0)  # from now on they end at different times
    for action in actions(env, min(STEPS, 3 * limit), seed=0):
        result = env.step(action)
        steps += 1
        np.testing.assert_array_equal(env.reset(nobody), result.obs)  # the true successor, also at an end
        assert not result.truncated[steps < limit].any()
        ended = result.terminated | result.truncated
        assert ended[steps == limit].all()
        seen |= {name for name in ("terminated", "truncated") if getattr(result, name).any()}
        np.testing.assert_array_equal(env.reset(ended)[~ended], result.obs[~ended])
        steps[ended] = 0
    assert seen == set(adapter.ends.split())


@each
def test_a_reset_is_for_its_mask_alone(adapter: Adapter) -> None:
    (env, twin), mask = (adapter.make() for _ in range(2)), np.array([True, False, True])
    before = trace(env, actions(env, 2, seed=0))[-1]
    trace(twin, actions(env, 2, seed=0))
    after = env.reset(mask)
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).any(axis=1).all()
    for action in actions(env, FEW, seed=1):
        result, other = env.step(action), twin.step(action)
        assert_identical([array[~mask] for array in result], [array[~mask] for array in other])
        for each_env, step in ((env, result), (twin, other)):
            each_env.reset(step.terminated | step.truncated)


@each
def test_a_seed_is_a_stream_for_each_environment(adapter: Adapter) -> None:
    many = adapter.make(NUM + 1)
    chosen = actions(many, FEW, seed=0)
    chosen[:, 1] = chosen[:, 0]
    expected = trace(many, chosen)
    assert_identical(trace(adapter.make(NUM + 1), chosen), expected)
    assert_identical(trace(adapter.make(NUM), chosen[:, :NUM]), [array[:NUM] for array in expected])
    assert differ(trace(adapter.make(NUM + 1, seed=2), chosen), expected) is adapter.random
    observed = [array for array in expected if array.ndim == 2]  # which no task is to be seen in
    neighbours = [array[0] for array in observed], [array[1] for array in observed]
    assert differ(*neighbours) is adapter.random


@each
def test_arrays_are_neither_kept_nor_changed(adapter: Adapter) -> None:
    """A careless caller writes into all that it gave and got, and sees what a careful one does."""

    def walk(careless: bool) -> list[np.ndarray]:
        env, kept, copies = adapter.make(), [], []

        def write(*arrays: np.ndarray) -> None:
            for array in arrays if careless else ():
                array[...] = 1

        if adapter.has_tasks:
            tasks = adapter.tasks(5, NUM)
            env.set_tasks(tasks)
            write(*tasks.values())
        for action in (None, *actions(env, FEW, seed=0)):
            given = np.ones(NUM, dtype=bool) if action is None else action.copy()
            results = [env.reset(given)] if action is None else [*env.step(given)]
            np.testing.assert_array_equal(given, True if action is None else action)
            mask = np.zeros(NUM, dtype=bool) if action is None else results[2] | results[3]
            results.append(env.reset(mask))
            kept += results
            copies += [array.copy() for array in results]
            write(given, mask, *results)
        assert careless or not differ(kept, copies)
        return copies

    assert_identical(walk(careless=True), walk(careless=False))


@each
def test_misuse_is_refused(adapter: Adapter) -> None:
    env = adapter.make()
    fine, name = actions(env, 1, seed=0)[0], env.spec.name
    with pytest.raises(EnvError, match=f"{name}: .*reset"):
        env.step(fine)
    env.reset()
    wrong = [fine[:1], fine[None], np.concatenate([fine, fine])]
    if env.spec.num_actions is None:
        wrong.append(np.where(fine == fine.max(), np.inf, fine))
    else:
        wrong += [0 * fine + env.spec.num_actions, 0 * fine - 1, 1.0 * fine]
    for action in wrong:
        with pytest.raises(EnvError, match=name.removeprefix("gym/")):
            env.step(action)
    for mask in (np.array([True]), np.array([1, 0, 1]), np.array([[True, False, True]])):
        with pytest.raises(EnvError, match=f"{name}: a reset mask is bool"):
            env.reset(mask)
    with pytest.raises(EnvError, match=name):
        env.set_tasks({"no_such_parameter": np.ones(NUM + 1)})
    env.set_tasks({})
    with pytest.raises(EnvError, match="saved"):
        adapter.make(NUM + 1).load_state_dict(env.state_dict())
    while adapter.ends and not isinstance(env, Locomotion):  # a robot goes on as Gymnasium's do
        result = env.step(fine)
        if (result.terminated | result.truncated).any():
            with pytest.raises(EnvError, match=f"{name}: .*reset"):
                env.step(fine)
            break


@each_family
def test_a_task_is_in_force_from_the_next_reset_of_its_environment(adapter: Adapter) -> None:
    env, twin = (adapter.make() for _ in range(2))
    np.testing.assert_array_equal(env.reset(), twin.reset())
    env.set_tasks(adapter.tasks(9, NUM))
    chosen = actions(env, 15, seed=0)  # a point wanders into a sparse reward
    for action in chosen[:2]:
        assert_identical(env.step(action), twin.step(action))
    mask, paid_differently = np.array([True, False, False]), False
    np.testing.assert_array_equal(env.reset(mask)[~mask], twin.reset(mask)[~mask])
    for action in chosen[2:]:
        result, other = env.step(action), twin.step(action)
        assert_identical([array[~mask] for array in result], [array[~mask] for array in other])
        paid_differently |= bool((result.reward != other.reward).any())
        for each_env, step in ((env, result), (twin, other)):
            each_env.reset(step.terminated | step.truncated)
        mask |= result.terminated | result.truncated
    assert paid_differently


@each_family
def test_a_task_parameter_is_one_row_for_each_environment(adapter: Adapter) -> None:
    for name, rows in adapter.tasks(0, NUM).items():
        with pytest.raises(EnvError, match=f"task '{name}' has to be"):
            adapter.make().set_tasks({name: rows[1:]})


# Resume ------------------------------------------------------------------------------------------------------------


def bodies(env: Locomotion, number: int) -> dict[str, np.ndarray]:
    """Directions and masses at first; frictions, which are to be forgotten, where the state is loaded."""
    scale = np.linspace(0.7, 1.5, env.num_envs)[:, None]
    if number > 1:
        return {"model.geom_friction": 2 * env._tasks.default("model.geom_friction")}
    mass = env._tasks.default("model.body_mass") * scale * (1 + 0.1 * number)
    return {"direction": scale[:, 0] + number, "model.body_mass": mass}


RESUMES: dict[type, dict[str, Case]] = {
    PointEnv: {
        world.name: env_case(world, num_envs=5, before=13, after=110)
        for world in (Navigation2D(), Corners(), Momentum(), Point1D(), PointRobot(), SparsePointRobot(), Ring())
    },
    TabularEnv: {
        f"after {steps} steps": env_case(
            TabularTasks(num_states=5, num_actions=3, horizon=7, concentration=0.5, num_terminal=1), 4, steps, 25
        )
        for steps in (0, 3, 11)
    },
    GymEnv: {
        **{
            name: env_case(Gymnasium(name), ends=ends)
            for name, ends in {
                "Pendulum-v1": False,
                "CartPole-v1": True,
                "MountainCarContinuous-v0": False,
                "Acrobot-v1": False,
                "FrozenLake-v1": True,
                "HalfCheetah-v5": False,
                "Ant-v5": True,
                "Humanoid-v5": True,
                "Pusher-v5": False,
            }.items()
        },
        "own": env_case(ReachTasks()),
    },
    Locomotion: {
        **{
            robot: env_case(MuJoCo(robot, 25), 3, before=33, tasks=bodies)
            for robot in ("half_cheetah", "ant", "humanoid", "hopper")
        },
        **{
            f"{type(family).__name__}-{family.robot}": env_case(family, 3, before=7, after=60)
            for family in (
                Direction(max_episode_steps=25),
                Direction("ant", "hyperl", as_angle=True, max_episode_steps=25),
                Direction2D("humanoid", max_episode_steps=25),
                Velocity(max_episode_steps=25),
                Velocity("walker2d", max_episode_steps=25),
                Goal(max_episode_steps=25),
                RandomParameters(max_episode_steps=25),
            )
        },
        "own": env_case(CartGoal(), 3),
    },
    SuiteEnv: {
        "time limit": env_case(DMControl("pendulum/swingup", 200), num_envs=1, before=3, after=6),
        # Every task keeps something else in Python, some of it, such as a dog's standing height, from a reset on.
        **{
            task: env_case(DMControl(task), num_envs=1, before=6, after=8, ends=False)
            for task in map("/".join, suite.ALL_TASKS)
        },
    },
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{cls.__name__}-{name}") for cls in RESUMES for name, case in RESUMES[cls].items()],
)
def test_it_goes_on_bit_for_bit(case: Case) -> None:
    assert_goes_on(case)


@pytest.mark.parametrize("name", ["half_cheetah", "pendulum", "HalfCheetah-v5", "point_1d", "tabular"])
def test_a_picture_is_of_the_size_asked_for(name: str) -> None:
    if reason := rendering_available():
        pytest.skip(reason)
    env = ADAPTERS[name].make()
    env.reset()
    resumes = env.resumes_exactly
    for picture, shape in ((env.render(), (240, 320, 3)), (env.render(1, 64, 48), (48, 64, 3))):
        assert picture.shape == shape
        assert picture.dtype == np.uint8
        assert picture.std() > 5  # a picture, not one colour
    assert env.resumes_exactly is resumes  # a renderer is no part of the state
    env.close()


def test_torch_has_its_threads_back_after_the_simulator_even_if_it_fails() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(EnvError), one_torch_thread():
            raise EnvError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_every_adapter_is_here() -> None:
    found = set()
    for module in pkgutil.walk_packages(lit_metarl.envs.__path__, "lit_metarl.envs."):
        classes = vars(importlib.import_module(module.name)).values()
        found |= {cls for cls in classes if inspect.isclass(cls) and issubclass(cls, BatchedEnv)}
    assert {type(adapter.make(1)) for adapter in ADAPTERS.values()} == found - {BatchedEnv}
    assert set(RESUMES) == found - {BatchedEnv}
