"""Families of locomotion tasks against single simulations stepped with ``mj_step`` and their draws."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from lit_metarl.envs.base import EnvError
from lit_metarl.envs.locomotion import load_model
from lit_metarl.envs.locomotion_tasks import (
    MULTIPLIER_BASES,
    Direction,
    Direction2D,
    Goal,
    RandomParameters,
    Velocity,
)
from lit_metarl.envs.task_robots import heading_penalty

FAMILIES = [
    *(Direction(robot) for robot in ("half_cheetah", "ant", "walker2d", "hopper", "humanoid", "swimmer")),
    Direction("half_cheetah", "hyperl"),
    Direction("ant", "hyperl"),
    Direction("ant", "hyperl", as_angle=True),
    Direction("walker2d", survival_reward=0.0, frame_skip=4),
    Direction2D("ant"),
    Direction2D("humanoid"),
    Direction2D("ant", reward="heading"),
    Direction2D("humanoid", reward="heading"),
    *(Velocity(robot) for robot in ("half_cheetah", "ant", "walker2d", "hopper", "humanoid", "swimmer")),
    Velocity("half_cheetah", "hyperl", velocity_range=(0.0, 2.5)),
    Velocity("ant", "hyperl"),
    Velocity("swimmer", velocity_range=(0.1, 0.2), reversed_penalty=True),
    Goal(),
    Goal("ant", "hyperl", goal_distribution="disc"),
    Goal(survival_reward=0.0, goal_distribution="disc"),
    *(RandomParameters(robot) for robot in ("half_cheetah", "ant", "walker2d", "hopper")),
]
ONE_OF_EACH = [
    Direction(),
    Direction("ant", "hyperl", as_angle=True),
    Direction2D("humanoid"),
    Velocity(),
    Velocity("walker2d"),
    Goal(),
    RandomParameters(),
]
OBS_DIMS = {"half_cheetah": 17, "ant": 111, "walker2d": 17, "hopper": 11, "humanoid": 376, "swimmer": 8}
SURVIVAL = {"half_cheetah": 0.0, "ant": 1.0, "walker2d": 1.0, "hopper": 1.0, "humanoid": 5.0, "swimmer": 0.0}


def each(families):
    return pytest.mark.parametrize("family", families, ids=lambda f: f"{type(f).__name__}-{f.robot}-{f.setup}")


def rng_of(seed=0):
    return np.random.default_rng(seed)


def started(family, num_envs, seed=0, tasks=None):
    env = family.make(num_envs, seed)
    env.set_tasks(family.sample(num_envs, rng_of(seed)) if tasks is None else tasks)
    return env, env.reset()


class Reference:
    """One simulation in plain MuJoCo, with reward, observation and end written out from its raw state."""

    def __init__(self, family, task, qpos, qvel):
        self.family, self.task = family, task
        self.model = load_model(family.built_robot())
        for name, value in task.items():
            if name.startswith("model."):
                getattr(self.model, name.removeprefix("model."))[:] = value
        self.data = mujoco.MjData(self.model)
        mujoco.mj_setConst(self.model, self.data)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)
        self.frame_skip = {"half_cheetah": 5, "ant": 5, "walker2d": 8, "hopper": 4, "humanoid": 5, "swimmer": 4}[
            family.robot
        ]
        if isinstance(family, RandomParameters) and family.robot == "walker2d":
            self.frame_skip = 5
        if family.frame_skip is not None:
            self.frame_skip = family.frame_skip
        self.forces = np.zeros((self.model.nbody, 6))

    def place(self):
        if self.family.robot == "ant":
            return self.data.xpos[1, :2].copy()
        if self.family.robot == "humanoid":
            mass = self.model.body_mass
            return (mass[:, None] * self.data.xipos)[:, :2].sum(axis=0) / mass.sum()
        return np.array([self.data.qpos[0], 0.0])

    def obs(self):
        q, v, clipped = self.data.qpos, self.data.qvel, np.clip(self.forces, -1, 1)
        robot, hyperl = self.family.robot, self.family.setup == "hyperl"
        if isinstance(self.family, Goal):
            parts = [q, v, clipped]
        elif robot == "half_cheetah":
            parts = [q[1:], v, *([self.data.xpos[1]] if hyperl else [])]
        elif robot == "ant":
            parts = [q[2:], v, *([] if hyperl else [clipped])]
        elif robot in ("walker2d", "hopper"):
            parts = [q[1:], np.clip(v, -10, 10)]
        elif robot == "humanoid":
            parts = [q[2:], v, self.data.cinert, self.data.cvel, self.data.qfrc_actuator, self.forces]
        else:
            parts = [q[2:], v]
        return np.concatenate([np.ravel(part) for part in parts])

    def step(self, action):
        before = self.place()
        self.data.ctrl[:] = self.model.actuator_ctrlrange[:, 1] * action  # all bounds are symmetric
        for _ in range(self.frame_skip):
            mujoco.mj_step(self.model, self.data)
        mujoco.mj_rnePostConstraint(self.model, self.data)
        self.forces = self.data.cfrc_ext.copy()
        velocity = (self.place() - before) / (self.frame_skip * self.model.opt.timestep)
        return self.obs(), self.motion(velocity) + self.survival() - self.costs(), self.fallen()

    def motion(self, velocity):
        family = self.family
        factor = 1.25 if family.robot == "humanoid" else 1.0
        if isinstance(family, RandomParameters):
            return velocity[0]
        if isinstance(family, Velocity):
            return abs(velocity[0] - self.task["velocity"]) * (1 if family.reversed_penalty else -1)
        if isinstance(family, Goal):
            return -abs(self.place() - self.task["goal"]).sum()
        if isinstance(family, Direction) and not family.as_angle:
            return factor * self.task["direction"] * velocity[0]
        if isinstance(family, Direction2D) and family.reward == "heading":
            return -np.linalg.norm(velocity / np.linalg.norm(velocity) - self.task["direction"])
        return factor * velocity @ self.task["direction"]

    def survival(self):
        family = self.family
        if family.survival_reward is not None:
            return family.survival_reward
        if family.setup == "hyperl":
            if family.robot == "half_cheetah":
                return 0.0
            return 1.05 if isinstance(family, Velocity) else 0.05
        if isinstance(family, Velocity) and family.robot in ("walker2d", "hopper"):
            return 15.0
        return SURVIVAL[family.robot]

    def costs(self):
        family = self.family
        weight = {
            "half_cheetah": 0.05,
            "ant": 0.005 if family.setup == "hyperl" else 0.1 if isinstance(family, Goal) else 0.5,
            "walker2d": 1e-3,
            "hopper": 1e-3,
            "humanoid": 0.1,
            "swimmer": 1e-4,
        }[family.robot]
        cost = weight * (self.data.ctrl**2).sum()
        if family.robot == "ant":
            cost += 0.5e-3 * (np.clip(self.forces, -1, 1) ** 2).sum()
        if family.robot == "humanoid":
            cost += min(0.5e-6 * (self.forces**2).sum(), 10)
        return cost

    def fallen(self):
        q, robot = self.data.qpos, self.family.robot
        if robot == "ant" and not isinstance(self.family, Goal):
            return not (0.2 if self.family.setup == "hyperl" else 0.0) <= q[2] <= 1.0
        if robot == "walker2d":
            return not (0.8 < q[1] < 2.0 and abs(q[2]) < 1.0)
        if robot == "hopper":
            rest = np.concatenate([q[2:], self.data.qvel])
            return not (q[1] > 0.7 and abs(q[2]) < 0.2 and (abs(rest) < 100).all())
        return bool(robot == "humanoid" and not 1.0 <= q[2] <= 2.0)


@each(FAMILIES)
def test_equals_single_simulations(family):
    num_envs, rng = 3, rng_of(2)
    tasks = family.sample(num_envs, rng)
    env, obs = started(family, num_envs, seed=5, tasks=tasks)

    def reference(i):
        qpos, qvel = (env._sim.field(name)[i].copy() for name in ("qpos", "qvel"))
        return Reference(family, {name: rows[i] for name, rows in tasks.items()}, qpos, qvel)

    references = [reference(i) for i in range(num_envs)]
    np.testing.assert_allclose(obs, [r.obs() for r in references], rtol=0, atol=1e-9)
    falls = 0
    for step in range(100):
        action = rng.uniform(-1, 1, (num_envs, env.spec.action_dim)) * np.array([[1.0], [0.3], [0.0]])
        result = env.step(action)
        for i, single in enumerate(references):
            obs, reward, fallen = single.step(action[i])
            np.testing.assert_allclose(result.obs[i], obs, rtol=0, atol=1e-9, err_msg=f"step {step}")
            assert result.reward[i] == pytest.approx(reward, abs=1e-9), step
            assert result.terminated[i] == fallen
        ended = result.terminated | result.truncated
        falls += int(result.terminated.sum())
        env.reset(ended)
        for i in np.flatnonzero(ended):
            references[i] = reference(i)
    # The comparison has seen what it is there to compare.
    assert falls or family.robot in ("half_cheetah", "swimmer", "ant")


@each(FAMILIES)
def test_sizes_and_names(family):
    spec = family.make(1, 0).spec
    expected = OBS_DIMS[family.robot]
    if family.setup == "hyperl":
        expected = {"half_cheetah": 20, "ant": 27}[family.robot]
    assert spec.obs_dim == (113 if isinstance(family, Goal) else expected)
    assert spec.max_episode_steps == 100
    assert spec.name.startswith(f"mujoco/{family.robot}_{family.name}")
    assert spec.name.endswith("_hyperl") == (family.setup == "hyperl")
    dt = {"half_cheetah": 0.05, "ant": 0.05, "walker2d": 0.016, "hopper": 0.008, "humanoid": 0.015, "swimmer": 0.04}
    if isinstance(family, Direction | Velocity | Goal | Direction2D) and family.frame_skip is None:
        assert spec.frame_dt == pytest.approx(dt[family.robot])


def test_walkers_frame_skip():
    assert RandomParameters("walker2d").make(1, 0).spec.frame_dt == pytest.approx(0.010)
    assert Direction("walker2d", frame_skip=4).make(1, 0).spec.frame_dt == pytest.approx(0.008)
    assert RandomParameters("walker2d", frame_skip=4).make(1, 0).spec.frame_dt == pytest.approx(0.008)


@pytest.mark.parametrize(
    ("family", "height", "stands"),
    [
        (Direction("ant"), [-0.01, 0.0, 0.1, 1.0, 1.01], [False, True, True, True, False]),
        (Direction("ant", "hyperl"), [0.19, 0.2, 0.5, 1.0, 1.01], [False, True, True, True, False]),
        (Goal(), [-0.01, 0.0, 0.1, 1.0, 1.01], [True] * 5),
        (Direction("humanoid"), [0.99, 1.0, 1.5, 2.0, 2.01], [False, True, True, True, False]),
    ],
)
def test_bounds_of_the_torso(family, height, stands):
    env, _ = started(family, 5)
    env._sim.field("qpos")[:, 2] = height
    assert env._healthy().tolist() == stands


def test_heading_by_hand():
    velocity = np.array([[3.0, 0.0], [0.0, 0.1], [-2.0, 0.0], [0.0, 0.0]])
    penalty = heading_penalty(velocity, velocity, np.tile([1.0, 0.0], (4, 1)))
    np.testing.assert_allclose(penalty, [0.0, -np.sqrt(2), -2.0, -1.0])


@each([family for family in FAMILIES if not isinstance(family, RandomParameters)])
def test_the_observation_does_not_know_the_task(family):
    env, other = (started(family, 4, seed=3, tasks=family.sample(4, rng_of(task)))[0] for task in (1, 2))
    np.testing.assert_array_equal(env._obs, other._obs)
    for action in rng_of().uniform(-0.3, 0.3, (8, 4, env.spec.action_dim)):
        result, twin = env.step(action), other.step(action)
        np.testing.assert_array_equal(result.obs, twin.obs)
    assert (result.reward != twin.reward).any()


def test_the_first_observation_does_not_know_the_body():
    family = RandomParameters()
    first, second = (started(family, 4, seed=3, tasks=family.sample(4, rng_of(task)))[1] for task in (1, 2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("family", [Direction(), Direction("ant", "hyperl", as_angle=True)])
def test_directions_are_a_fair_coin(family):
    direction = family.sample(4000, rng_of())["direction"]
    values, counts = np.unique(direction, axis=0, return_counts=True)
    both = [[np.cos(1), -np.sin(1)], [np.cos(1), np.sin(1)]] if family.as_angle else [-1.0, 1.0]
    np.testing.assert_allclose(values, both)
    np.testing.assert_allclose(counts / 4000, 0.5, atol=0.03)
    assert np.abs(family.context({"direction": direction})).max() <= 1.0


def test_directions_in_the_plane_are_uniform():
    direction = Direction2D().sample(4000, rng_of())["direction"]
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1.0)
    angle = np.arctan2(direction[:, 1], direction[:, 0])
    np.testing.assert_allclose(np.histogram(angle, 8, (-np.pi, np.pi))[0] / 4000, 1 / 8, atol=0.02)


@pytest.mark.parametrize(
    ("family", "training", "beyond"),
    [
        (Velocity(), (0.0, 3.0), (3.0, 3.6)),
        (Velocity("ant"), (0.0, 3.0), (3.0, 3.6)),
        (Velocity("walker2d"), (0.0, 2.0), (2.0, 2.4)),
        (Velocity("swimmer"), (0.0, 2.0), (2.0, 2.4)),
        (Velocity("half_cheetah", "hyperl", velocity_range=(0.0, 2.5)), (0.0, 2.5), (2.5, 3.0)),
        (Velocity(velocity_range=(1.0, 2.0), out_of_distribution_range=(0.0, 1.0)), (1.0, 2.0), (0.0, 1.0)),
    ],
)
def test_speeds_fill_their_range_and_no_other(family, training, beyond):
    for split, (low, high) in (("train", training), ("test", training), ("out_of_distribution", beyond)):
        speed = family.sample(4000, rng_of(), split)["velocity"]
        assert low <= speed.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < speed.max() <= high
        assert speed.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    middle = np.array([training[0], np.mean(training), training[1]])
    np.testing.assert_allclose(family.context({"velocity": middle}), [[-1.0], [0.0], [1.0]])
    outside = (np.array([beyond]).T - middle[1]) / (middle[2] - middle[1])  # not clipped
    np.testing.assert_allclose(family.context({"velocity": np.array(beyond)}), outside, rtol=1e-6)


@pytest.mark.parametrize(("distribution", "norm"), [("square", np.inf), ("disc", 2)])
def test_goals_fill_their_area_and_no_other(distribution, norm):
    family = Goal(goal_distribution=distribution)
    for split, low, high in (("train", 0.0, 3.0), ("test", 0.0, 3.0), ("out_of_distribution", 3.0, 4.0)):
        goal = family.sample(4000, rng_of(), split)["goal"]
        size = np.linalg.norm(goal, norm, axis=1)
        assert low <= size.min()
        assert 0.99 * high < size.max() <= high
        # The area within r grows as r² in both norms.
        assert (size**2).mean() == pytest.approx((low**2 + high**2) / 2, rel=0.03)
        np.testing.assert_allclose(goal.mean(axis=0), 0.0, atol=0.15)
    np.testing.assert_allclose(family.context({"goal": np.array([[3.0, -1.5], [4.5, 0.0]])}), [[1.0, -0.5], [1.5, 0.0]])


@pytest.mark.parametrize("robot", RandomParameters.robots)
def test_multipliers_are_log_uniform(robot):
    family = RandomParameters(robot)
    model = load_model(family.built_robot())
    assert set(MULTIPLIER_BASES) == {"body_mass", "body_inertia", "geom_friction", "dof_damping"}
    for split, low, high in (("train", 0.0, 3.0), ("test", 0.0, 3.0), ("out_of_distribution", 3.0, 4.0)):
        tasks = family.sample(300, rng_of(), split)
        for field, base in {"body_mass": 1.5, "body_inertia": 1.5, "geom_friction": 1.5, "dof_damping": 1.3}.items():
            value, rows = getattr(model, field), tasks[f"model.{field}"]
            assert rows.shape == (300, *value.shape)
            assert not rows[:, value == 0].any()
            power = np.log(rows[:, value != 0] / value[value != 0]) / np.log(base)
            assert low - 1e-12 <= np.abs(power).min() < low + 0.02
            assert high - 0.02 < np.abs(power).max() <= high + 1e-12
            assert np.abs(power).mean() == pytest.approx((low + high) / 2, rel=0.05)
            assert (power > 0).mean() == pytest.approx(0.5, abs=0.05)
            # Entries of one task are drawn one by one.
            assert (np.ptp(power, axis=1) > 1e-3).all()
        assert np.abs(family.context(tasks)).max() == pytest.approx(high / 3, rel=0.01)


def test_the_context_of_a_body_holds_its_exponents():
    family = RandomParameters("hopper")
    model = load_model(family.built_robot())
    tasks = {f"model.{field}": np.array(getattr(model, field))[None] for field in MULTIPLIER_BASES}
    assert not family.context(tasks).any()
    tasks["model.body_mass"] = tasks["model.body_mass"] * 1.5**2
    context = family.context(tasks)
    np.testing.assert_allclose(context[0, : model.nbody - 1], 2 / 3, rtol=1e-6)
    assert not context[0, model.nbody - 1 :].any()


@each(ONE_OF_EACH)
def test_draws_come_from_the_generator_alone(family):
    first, again, other = (family.sample(8, rng_of(seed)) for seed in (3, 3, 4))
    for name, rows in first.items():
        assert len(rows) == 8
        np.testing.assert_array_equal(rows, again[name])
        assert (rows != other[name]).any()
    context = family.context(first)
    assert context.dtype == np.float32
    assert context.shape[0] == 8


@each([Direction2D(), Velocity(), Goal(), RandomParameters()])
def test_train_and_test_tasks_are_disjoint(family):
    streams = map(np.random.default_rng, np.random.SeedSequence(0).spawn(2))
    train, test = (family.context(family.sample(200, next(streams), split)) for split in ("train", "test"))
    assert not {tuple(row) for row in train} & {tuple(row) for row in test}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Direction("cheetah"), "'cheetah' for Direction in setup promp; known: half_cheetah, ant, walker2d"),
        (lambda: Direction("walker2d", "hyperl"), "in setup hyperl; known: half_cheetah, ant"),
        (lambda: Direction("ant", "gym"), "'gym'; known: promp, hyperl"),
        (lambda: Direction(as_angle=True), "moves in the plane, ant or humanoid"),
        (lambda: Direction2D("half_cheetah"), "known: ant, humanoid"),
        (lambda: Direction2D(reward="dot"), "projection or heading"),
        (lambda: Goal("humanoid"), "known: ant"),
        (lambda: Goal(goal_distribution="ring"), "square or disc"),
        (lambda: Goal(size=4.0), "4.0 and 4.0"),
        (lambda: Goal(out_of_distribution_size=np.inf), "3.0 and inf"),
        (lambda: RandomParameters("swimmer"), "known: half_cheetah, ant, walker2d, hopper"),
        (lambda: RandomParameters(limit=0.0), "0.0 and 4.0"),
        (lambda: Velocity(velocity_range=(3.0, 3.0)), "low < high"),
        (lambda: Velocity(velocity_range=(0.0, np.inf)), "low < high"),
        (lambda: Velocity(out_of_distribution_range=(4.0, 4.0)), "low < high"),
        (lambda: Velocity(out_of_distribution_range=(2.0, 4.0)), "overlaps"),
        (lambda: Velocity(velocity_range=(1.0, 2.0), out_of_distribution_range=(0.0, 1.5)), "overlaps"),
        (lambda: Velocity(max_episode_steps=0), "must be positive"),
        (lambda: Velocity(frame_skip=0), "must be positive"),
        (lambda: Velocity(threads=-1), "must be positive"),
        (lambda: Direction().sample(2, rng_of(), "out_of_distribution"), "Direction has no tasks of split"),
        (lambda: Goal().sample(2, rng_of(), "valid"), "only of train, test, out_of_distribution"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_least_of_each_setting():
    env = Velocity(max_episode_steps=1, frame_skip=1, threads=1).make(1, 0)
    env.reset()
    assert env.step(np.zeros((1, 6))).truncated.all()


def test_ranges_may_touch():
    slow = Velocity(velocity_range=(1.0, 2.0), out_of_distribution_range=(0.0, 1.0))
    assert slow.ranges() == ((1.0, 2.0), (0.0, 1.0))


@pytest.mark.parametrize(
    ("family", "tasks", "message"),
    [
        (Velocity(), {"direction": np.ones(2)}, r"'direction'; known: velocity"),
        (Goal(), {"goal": np.ones(2)}, r"shape \(2, 2\), got \(2,\)"),
        (Direction2D(), {"direction": np.ones(2)}, r"shape \(2, 2\)"),
    ],
)
def test_tasks_of_another_family_are_refused(family, tasks, message):
    with pytest.raises(EnvError, match=message):
        family.make(2, 0).set_tasks(tasks)


def test_states_of_different_families_are_told_apart():
    state = Direction("ant").make(2, 0).state_dict()
    for family in (Direction("ant", "hyperl"), Velocity("ant"), Direction("half_cheetah")):
        with pytest.raises(EnvError, match="mujoco/ant_direction"):
            family.make(2, 0).load_state_dict(state)
