"""Points: dynamics and rewards by hand and against scalar arithmetic, and task draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lit_metarl.envs.base import EnvError
from lit_metarl.envs.navigation import Corners, Momentum, Navigation2D, Point1D, PointRobot, SparsePointRobot

FAMILIES = [
    Navigation2D(),
    Navigation2D(distance="euclidean"),
    Corners(),
    Corners(reward_kind="dense"),
    Corners(reward_kind="dense_squared"),
    Momentum(),
    Momentum(reward_kind="dense"),
    Momentum(reward_kind="dense_squared"),
    Point1D(),
    Point1D(goals="two"),
    PointRobot(),
]
CONTINUOUS = [Navigation2D(), Navigation2D(goal_size=0.4, out_of_distribution_size=0.5), Point1D(), PointRobot()]


def each(families):
    return pytest.mark.parametrize("family", families, ids=repr)


def place(env, state, goal):
    """Put every environment at ``state`` under ``goal``."""
    env.set_tasks({"goal": np.asarray(goal, dtype=float)})
    env.reset()
    env._state[...] = state


def one_step(family, state, goal, action):
    """Next state, reward and end of one environment."""
    env = family.make(1, seed=0)
    place(env, [state], [goal])
    obs, reward, terminated, _ = env.step(np.array([action], dtype=float))
    return obs[0], float(reward[0]), bool(terminated[0])


def scalar_step(family, state, goal, action):
    """The same step written out for one environment in plain Python."""
    push = [min(max(float(a), -1.0), 1.0) for a in action]
    old = [float(s) for s in state]
    if isinstance(family, Navigation2D):
        new = [min(max(s + 0.1 * a, -0.5), 0.5) for s, a in zip(old, push, strict=True)]
    elif isinstance(family, Corners):
        new = [s + 0.2 * a for s, a in zip(old, push, strict=True)]
    elif isinstance(family, Momentum):
        velocity = [old[2] + 0.1 * push[0], old[3] + 0.1 * push[1]]
        new = [old[0] + velocity[0], old[1] + velocity[1], *velocity]
    elif isinstance(family, PointRobot):
        new = [s + 0.1 * a for s, a in zip(old, push, strict=True)]
    else:
        new = [2.0 * push[0]]
    dim = len(goal)
    distance, before = math.dist(new[:dim], goal), math.dist(old[:dim], goal)
    kind = getattr(family, "reward_kind", getattr(family, "distance", "gauss"))
    kind = "dense" if isinstance(family, PointRobot) else kind
    if kind == "sparse" and isinstance(family, Corners):
        corners = [(sx, sy) for sx in (-2.0, 2.0) for sy in (-2.0, 2.0)]
        nearest = min(corners, key=lambda corner: math.dist(corner, new))
        alive = abs(new[0]) + abs(new[1]) >= 0.5
        reward = before - distance if alive and nearest == tuple(goal) else 0.0
    else:
        reward = {
            "squared": -(distance**2),
            "euclidean": -distance,
            "sparse": max(2.0 - distance, 0.0),
            "dense": -distance,
            "dense_squared": -(distance**2),
            "gauss": math.exp(-0.1 * distance**2),
        }[kind]
    reached = isinstance(family, Navigation2D) and all(abs(n - g) < 0.01 for n, g in zip(new, goal, strict=True))
    return new, reward, reached


@each(FAMILIES)
def test_equals_a_scalar_computation(family):
    num_envs, rng = 64, np.random.default_rng(0)
    env = family.make(num_envs, seed=1)
    goal = family.sample(num_envs, rng)["goal"]
    env.set_tasks({"goal": goal})
    before, rewards = env.reset(), []
    for _ in range(min(60, family.max_episode_steps)):
        # Some actions point at the goal, some anywhere, some out of their bounds.
        aim = np.sign(goal - before[:, : env.spec.action_dim]) * rng.uniform(0, 1, goal.shape)
        action = np.where(np.arange(num_envs)[:, None] % 2, aim, rng.uniform(-1.5, 1.5, goal.shape))
        result = env.step(action)
        for i in range(num_envs):
            state, reward, reached = scalar_step(family, before[i], goal[i], action[i])
            np.testing.assert_allclose(result.obs[i], state, rtol=0, atol=1e-12)
            assert result.reward[i] == pytest.approx(reward, abs=1e-12)
            assert result.terminated[i] == reached
        rewards.append(result.reward)
        before = env.reset(result.terminated | result.truncated)
    # The comparison has seen rewards of several kinds.
    assert np.unique(np.round(rewards, 6)).size > 20


def test_navigation_by_hand():
    family = Navigation2D()
    # 0.3 + 0.1 and 0.45 + 0.1, stopped by the wall; offsets to the goal 0.4 and 0.2
    obs, reward, terminated = one_step(family, [0.3, 0.45], [0.0, 0.3], [1.0, 1.0])
    np.testing.assert_allclose(obs, [0.4, 0.5], atol=1e-15)
    assert reward == pytest.approx(-(0.16 + 0.04))
    assert not terminated
    euclidean = one_step(Navigation2D(distance="euclidean"), [0.3, 0.45], [0.0, 0.3], [1.0, 1.0])
    assert euclidean[1] == pytest.approx(-math.sqrt(0.2))
    # both within 0.01, then only one of them
    assert one_step(family, [0.1, 0.1], [0.209, 0.1], [1.0, 0.0])[2]
    assert not one_step(family, [0.1, 0.1], [0.209, 0.111], [1.0, 0.0])[2]
    assert family.make(2, seed=0).reset().tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(("distance", "expected"), [("squared", -100 / 6), ("euclidean", -38.26)])
def test_doing_nothing_earns_what_is_known(distance, expected):
    family, num_envs = Navigation2D(distance=distance), 20_000
    env = family.make(num_envs, seed=0)
    env.set_tasks(family.sample(num_envs, np.random.default_rng(0)))
    env.reset()
    result = env.step(np.zeros((num_envs, 2)))
    # The point stays at the origin, where the reward of each of the 100 steps is the same.
    assert not result.obs.any()
    assert 100 * result.reward.mean() == pytest.approx(expected, rel=0.01)


def test_corners_by_hand():
    family = Corners()
    goal = [2.0, 2.0]
    # The dead zone: ‖(0.2, 0.2)‖₁ = 0.4 pays nothing, (0.3, 0.3) the progress √2 · 0.2 of the whole step.
    assert one_step(family, [0.0, 0.0], goal, [1.0, 1.0])[1] == 0.0
    assert one_step(family, [0.1, 0.1], goal, [1.0, 1.0])[1] == pytest.approx(0.2 * math.sqrt(2))
    # It is around the origin, not around the goal.
    assert one_step(family, [1.8, 1.8], goal, [1.0, 1.0])[1] == pytest.approx(0.2 * math.sqrt(2))
    # Back in the goal's quadrant: paid negatively. In another quadrant: nothing, wherever it goes.
    assert one_step(family, [1.0, 1.0], goal, [-1.0, -1.0])[1] == pytest.approx(-0.2 * math.sqrt(2))
    assert one_step(family, [-1.0, 1.0], goal, [-1.0, 0.0])[1] == 0.0
    assert one_step(family, [-1.0, 1.0], goal, [1.0, 0.0])[1] == 0.0
    # No walls.
    assert one_step(family, [2.0, 2.0], goal, [1.0, 1.0])[0].tolist() == [2.2, 2.2]


def test_a_straight_run_to_the_corner_earns_about_two_and_a_half():
    env = Corners().make(1, seed=0)
    place(env, [[0.0, 0.0]], [[2.0, -2.0]])
    earned = sum(float(env.step(np.array([[1.0, -1.0]])).reward[0]) for _ in range(10))
    assert earned == pytest.approx(1.8 * math.sqrt(2))  # of 2√2 the first step is lost to the dead zone
    assert 2.4 < earned < 2.6


def test_momentum_by_hand():
    # v = (0.1 + 0.1, 0 − 0.05); x = (1.5, 2.0) + v = (1.7, 1.95); distance to (2, 2): √(0.09 + 0.0025)
    obs, reward, terminated = one_step(Momentum(), [1.5, 2.0, 0.1, 0.0], [2.0, 2.0], [1.0, -0.5])
    np.testing.assert_allclose(obs, [1.7, 1.95, 0.2, -0.05], atol=1e-15)
    assert reward == pytest.approx(2 - math.sqrt(0.0925))
    assert not terminated
    assert one_step(Momentum(), [0.0] * 4, [2.0, 2.0], [0.0, 0.0])[1] == 0.0


def test_point_1d_by_hand():
    obs, reward, _ = one_step(Point1D(), [-1.3], [0.5], [0.75])
    assert obs.tolist() == [1.5]
    assert reward == pytest.approx(math.exp(-0.1))
    assert Point1D().max_episode_steps == 5


def test_point_robots_by_hand():
    obs, reward, terminated = one_step(PointRobot(), [0.9, -0.5], [0.6, -0.1], [5.0, -1.0])  # to (1, −0.6)
    np.testing.assert_allclose(obs, [1.0, -0.6])
    assert (reward, terminated) == (pytest.approx(-math.sqrt(0.41)), False)
    sparse, goal = SparsePointRobot(), [0.6, 0.8]
    obs, reward, _ = one_step(sparse, [0.6, 0.51], goal, [0.0, 1.0])
    np.testing.assert_allclose([*obs, reward], [0.6, 0.61, 0.81])
    assert one_step(sparse, [0.6, 0.5], goal, [0.0, 0.9])[1] == 0.0
    assert one_step(sparse, [0.6, 0.8], goal, [0.0, 0.0])[1] == 1.0
    rows = {"goal": np.array([goal, goal])}
    after = np.array([[0.6, 0.6], [-0.6, 0.8]])
    np.testing.assert_allclose(sparse.shaped_reward(rows, after, after), [-0.2, -1.2])
    with pytest.raises(ValueError, match="PointRobot has no shaped reward"):
        PointRobot().shaped_reward(rows, after, after)


def test_sparse_goals_are_on_a_half_circle():
    family = SparsePointRobot()
    for split, sign in (("train", 1), ("test", 1), ("out_of_distribution", -1)):
        goal = family.sample(2000, np.random.default_rng(0), split)["goal"]
        np.testing.assert_allclose(np.linalg.norm(goal, axis=1), 1.0)
        assert (sign * goal[:, 1] >= 0).all()
        np.testing.assert_allclose(goal.mean(axis=0), [0.0, sign * 2 / np.pi], atol=0.04)


@pytest.mark.parametrize(
    ("family", "low", "high"),
    [(Corners(), [-0.2] * 2, [0.2] * 2), (Momentum(), [-0.2] * 2 + [-0.1] * 2, [0.2] * 2 + [0.1] * 2),
     (Point1D(), [-2.0], [2.0]), (PointRobot(), [-1.0] * 2, [1.0] * 2)],
    ids=repr,
)  # fmt: skip
def test_starts_fill_their_box(family, low, high):
    obs = family.make(3000, seed=0).reset()
    assert ((low <= obs) & (obs <= high)).all()
    np.testing.assert_allclose(obs.min(axis=0) / low, 1.0, atol=0.01)
    np.testing.assert_allclose(obs.max(axis=0) / high, 1.0, atol=0.01)


@each(CONTINUOUS)
def test_goals_fill_their_range_and_no_other(family):
    size, larger = (1.0, 1.5) if isinstance(family, Point1D) else (family.goal_size, family.out_of_distribution_size)
    for split in ("train", "test"):
        goal = family.sample(4000, np.random.default_rng(0), split)["goal"]
        norm = np.abs(goal).max(axis=1)
        assert norm.max() <= size
        assert norm.min() < 0.05 * size
        # Uniform: each coordinate has mean 0 and variance size²/3.
        np.testing.assert_allclose(goal.mean(axis=0), 0.0, atol=0.05 * size)
        np.testing.assert_allclose(goal.var(axis=0), size**2 / 3, rtol=0.06)
        assert np.abs(family.context({"goal": goal})).max() <= 1.0
    far = family.sample(4000, np.random.default_rng(0), "out_of_distribution")["goal"]
    norm = np.abs(far).max(axis=1)
    assert size < norm.min() < 1.02 * size
    assert 0.98 * larger < norm.max() <= larger
    np.testing.assert_allclose(far.mean(axis=0), 0.0, atol=0.05 * larger)
    if far.shape[1] == 2:  # the ring's mass grows with its circumference: E[r²] = (size² + larger²) / 2
        assert (norm**2).mean() == pytest.approx((size**2 + larger**2) / 2, rel=0.02)
        assert (np.abs(far[:, 0]) == norm).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("family", [Corners(), Momentum(), Point1D(goals="two")], ids=repr)
def test_discrete_goals_are_equally_likely(family):
    goal = family.sample(4000, np.random.default_rng(0))["goal"]
    values, counts = np.unique(goal, axis=0, return_counts=True)
    expected = [[-1.0], [1.0]] if goal.shape[1] == 1 else [[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]]
    assert values.tolist() == expected
    np.testing.assert_allclose(counts / 4000, 1 / len(expected), atol=0.03)
    assert np.abs(family.context({"goal": goal})).tolist() == np.ones_like(goal).tolist()


@each(FAMILIES)
def test_draws_come_from_the_generator_alone(family):
    first, again, other = (family.sample(8, np.random.default_rng(seed))["goal"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@each(CONTINUOUS)
def test_train_and_test_tasks_are_disjoint(family):
    streams = map(np.random.default_rng, np.random.SeedSequence(0).spawn(2))
    train, test = (family.sample(500, next(streams), split)["goal"] for split in ("train", "test"))
    assert not {tuple(row) for row in train} & {tuple(row) for row in test}


@each(FAMILIES)
def test_the_observation_does_not_know_the_task(family):
    num_envs, rng = 16, np.random.default_rng(0)
    env, other = (family.make(num_envs, seed=2) for _ in range(2))
    far = family.sample(num_envs, rng)["goal"]
    env.set_tasks({"goal": far})
    other.set_tasks({"goal": -far})
    np.testing.assert_array_equal(env.reset(), other.reset())
    paid_differently = False
    for _ in range(min(20, family.max_episode_steps)):
        action = rng.uniform(-1, 1, far.shape)
        result, twin = env.step(action), other.step(action)
        np.testing.assert_array_equal(result.obs, twin.obs)
        paid_differently |= bool((result.reward != twin.reward).any())
        if (result.terminated | twin.terminated).any():
            break
    assert paid_differently


def test_reaching_the_goal_in_the_last_step_is_termination():
    env = Navigation2D(max_episode_steps=1).make(1, seed=0)
    place(env, 0.0, [[0.1, 0.1]])
    result = env.step(np.ones((1, 2)))
    assert (result.terminated.item(), result.truncated.item()) == (True, False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Navigation2D(max_episode_steps=0), r"max_episode_steps \(0\)"),
        (lambda: Navigation2D(distance="cubed"), "squared or euclidean, not 'cubed'"),
        (lambda: Navigation2D(goal_size=0.75), "0.75 and 0.75"),
        (lambda: Navigation2D(goal_size=0.0), "0.0 and 0.75"),
        (lambda: Corners(reward_kind="shaped"), "'shaped'"),
        (lambda: Momentum(reward_kind="shaped"), "'shaped'"),
        (lambda: Point1D(goals="three"), "uniform or two"),
        (lambda: PointRobot(goal_size=2.0), "2.0 and 1.5"),
        (lambda: SparsePointRobot(goal_radius=1.0), r"goal_radius \(1.0\)"),
        (lambda: Corners().make(0, seed=0), "num_envs"),
        (lambda: Corners().sample(2, np.random.default_rng(0), "out_of_distribution"), "Corners has no tasks of split"),
        (lambda: Navigation2D().sample(2, np.random.default_rng(0), "valid"), "only of train, test, out_of_dist"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_state_of_another_world_is_refused():
    state = Corners().make(2, seed=0).state_dict()
    with pytest.raises(EnvError, match="2 x points/corners"):
        Momentum().make(2, seed=0).load_state_dict(state)


def test_picture():
    env = Navigation2D().make(2, seed=0)
    place(env, [[0.0, 0.0], [-0.4, 0.4]], [[0.4, 0.4], [0.4, 0.4]])
    picture = env.render(1, width=200, height=160)
    assert picture.shape == (160, 200, 3)
    assert picture.dtype == np.uint8
    # half-width 0.8 is 80 pixels, so 0.4 is 40 from the centre (80, 100); rows count downwards
    assert picture[40, 60].tolist() == [40, 80, 200]
    assert picture[40, 140].tolist() == [60, 160, 75]
    assert picture[80, 150].tolist() == [190, 190, 190]
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert (Point1D().make(1, seed=0).render() == np.array([60, 160, 75])).all(axis=2).any()
    for index in (2, -1):
        with pytest.raises(EnvError, match=f"no environment {index} to render, only 0 to 1"):
            env.render(index)
