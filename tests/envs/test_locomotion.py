"""Every robot against Gymnasium's ``-v5``, and what only robots have: bodies as tasks, contacts, divergence."""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np
import pytest
from mujoco.batch import Batch, SimulationError
from oracles import assert_identical, through_file

from lit_metarl.envs import locomotion
from lit_metarl.envs.base import EnvError, make_streams
from lit_metarl.envs.locomotion import MuJoCo
from lit_metarl.envs.robots import ROBOTS, all_inside, contact_cost, contact_forces, inside

GYMNASIUM_IDS = {
    "half_cheetah": "HalfCheetah-v5",
    "ant": "Ant-v5",
    "walker2d": "Walker2d-v5",
    "hopper": "Hopper-v5",
    "humanoid": "Humanoid-v5",
    "swimmer": "Swimmer-v5",
    "inverted_pendulum": "InvertedPendulum-v5",
}


def gymnasium_envs(robot, num_envs, seed, limit):
    """One Gymnasium environment per stream of ``seed``, drawing from that stream."""
    envs = [
        gymnasium.make(GYMNASIUM_IDS[robot], max_episode_steps=limit, disable_env_checker=True) for _ in range(num_envs)
    ]
    for env, stream in zip(envs, make_streams(seed, num_envs), strict=True):
        env.unwrapped.np_random = stream
    return envs


def native(env, action):
    low, high = env.unwrapped.model.actuator_ctrlrange.T
    return (low + high) / 2 + (high - low) / 2 * action


def run(env, steps, seed=1):
    """Random actions, resets at the end of episodes; observations, rewards and ends of every step, stacked."""
    rng, trace = np.random.default_rng(seed), []
    for _ in range(steps):
        result = env.step(rng.uniform(-1, 1, (env.num_envs, env.spec.action_dim)))
        after = env.reset(result.terminated | result.truncated)
        trace.append([*result, after])
    return [np.stack(column) for column in zip(*trace, strict=True)]


def test_table_is_covered():
    assert set(GYMNASIUM_IDS) == set(ROBOTS)


@pytest.mark.parametrize("robot", ROBOTS)
def test_equals_gymnasium(robot):
    num_envs, limit = 3, 120
    env = MuJoCo(robot, limit, threads=2).make(num_envs, seed=5)
    references = gymnasium_envs(robot, num_envs, 5, limit)
    assert env.spec.name == f"mujoco/{robot}"
    assert env.spec.frame_dt == pytest.approx(references[0].unwrapped.dt)
    assert (env.spec.obs_dim,) == references[0].observation_space.shape
    np.testing.assert_allclose(env.reset(), [e.reset()[0] for e in references], rtol=0, atol=1e-9)
    rng, ends = np.random.default_rng(0), np.zeros(2, dtype=int)
    for step in range(500):
        # Full range, gentle and zero actions: falls, long episodes, and states at rest.
        action = rng.uniform(-1, 1, (num_envs, env.spec.action_dim)) * np.array([[1.0], [0.3], [0.0]])
        result = env.step(action)
        expected = [e.step(native(e, a))[:4] for e, a in zip(references, action, strict=True)]
        obs, reward, terminated, truncated = (np.array(column) for column in zip(*expected, strict=True))
        np.testing.assert_allclose(result.obs, obs, rtol=0, atol=1e-9, err_msg=f"step {step}")
        np.testing.assert_allclose(result.reward, reward, rtol=0, atol=1e-9, err_msg=f"step {step}")
        np.testing.assert_array_equal(result.terminated, terminated)
        np.testing.assert_array_equal(result.truncated, truncated)
        ends += terminated.any(), truncated.any()
        ended = terminated | truncated
        after = env.reset(ended)
        for i in np.flatnonzero(ended):
            np.testing.assert_allclose(after[i], references[i].reset()[0], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(after[~ended], result.obs[~ended])
    # The comparison has seen what it is there to compare.
    assert ends[0] > 0 or not ROBOTS[robot].healthy
    assert ends[1] > 0 or robot in ("humanoid", "inverted_pendulum", "hopper", "walker2d")


@pytest.mark.parametrize("robot", ["half_cheetah", "ant"])
def test_equals_gymnasium_from_a_state_set_by_hand(robot):
    """Not only near the initial state: a pose and a speed far from it, set in Gymnasium and here."""
    env = MuJoCo(robot).make(2, seed=0)
    (reference,) = gymnasium_envs(robot, 1, 0, 1000)
    reference.reset()
    env.reset()
    model = reference.unwrapped.model
    rng = np.random.default_rng(3)
    qpos, qvel = model.qpos0 + rng.uniform(-0.4, 0.4, model.nq), 3.0 * rng.standard_normal(model.nv)
    qpos[2 if robot == "ant" else 1] += 0.3
    reference.unwrapped.set_state(qpos, qvel)
    env._sim.reset(qpos[None], qvel[None], np.array([1]))
    env._position[1] = qpos[0]
    for _ in range(50):
        action = rng.uniform(-1, 1, (2, env.spec.action_dim))
        result = env.step(action)
        obs, reward, *_ = reference.step(native(reference, action[1]))
        np.testing.assert_allclose(result.obs[1], obs, rtol=0, atol=1e-9)
        assert result.reward[1] == pytest.approx(reward, abs=1e-9)


@pytest.mark.parametrize("robot", ["ant", "walker2d", "hopper", "humanoid"])
def test_a_robot_is_healthy_where_gymnasium_says_so(robot):
    count, rng = 1000, np.random.default_rng(0)
    env = MuJoCo(robot).make(count, seed=0)
    (reference,) = gymnasium_envs(robot, 1, 0, 1000)
    reference.reset()
    model = reference.unwrapped.model
    qpos, qvel = np.tile(model.qpos0, (count, 1)), rng.standard_normal((count, model.nv))
    qpos[:, 1], qpos[:, 2] = rng.uniform(0.1, 2.5, count), rng.uniform(-1.5, 2.5, count)
    qpos[::2, 2] /= 5  # hoppers stand upright
    qvel[::5, 3] = rng.uniform(90.0, 110.0, count // 5) * rng.choice([-1.0, 1.0], count // 5)
    env._sim.reset(qpos, qvel, np.arange(count))
    expected = []
    for position, velocity in zip(qpos, qvel, strict=True):
        reference.unwrapped.set_state(position, velocity)
        expected.append(reference.unwrapped.is_healthy)
    assert 0.1 < np.mean(expected) < 0.9
    np.testing.assert_array_equal(env._healthy(), expected)


@pytest.mark.parametrize("robot", ["half_cheetah", "ant", "humanoid"])
def test_threads_and_neighbours_do_not_matter(robot):
    def trace(num_envs, threads, seed=3):
        env = MuJoCo(robot, 30, threads).make(num_envs, seed)
        first = env.reset()
        rng = np.random.default_rng(0)
        actions = rng.uniform(-1, 1, (50, 5, env.spec.action_dim))[:, :num_envs]
        steps = []
        for action in actions:
            result = env.step(action)
            steps.append([*result, env.reset(result.terminated | result.truncated)])
        return [first[None], *(np.stack(column) for column in zip(*steps, strict=True))]

    one_thread = trace(5, 1)
    assert_identical(one_thread, trace(5, 2))
    for num_envs in (1, 3):
        assert_identical([a[:, :num_envs] for a in one_thread], trace(num_envs, 1))
    other = trace(5, 1, seed=4)
    assert not np.isclose(one_thread[0], other[0]).all(axis=-1).any()
    first_obs = one_thread[0][0]
    assert len(np.unique(first_obs.round(12), axis=0)) == 5


def test_reset_after_loading_returns_the_saved_observations():
    env, other = (MuJoCo("ant").make(2, seed=seed) for seed in (0, 1))
    env.reset()
    obs = run(env, 6)[-1][-1]
    other.load_state_dict(through_file(env.state_dict()))
    np.testing.assert_array_equal(other.reset(np.array([False, True]))[0], obs[0])


def test_state_of_another_robot_is_refused():
    state = MuJoCo("walker2d").make(2, seed=0).state_dict()
    env = MuJoCo("half_cheetah").make(2, seed=0)
    assert state["physics"].shape == env.state_dict()["physics"].shape
    with pytest.raises(EnvError, match="walker2d"):
        env.load_state_dict(state)


def test_direction_turns_the_forward_reward_at_the_next_reset():
    env, twin = (MuJoCo("half_cheetah").make(2, seed=0) for _ in range(2))
    env.reset()
    twin.reset()
    env.set_tasks({"direction": np.array([-1.0, 1.0])})
    action = np.random.default_rng(0).uniform(-1, 1, (2, 6))
    np.testing.assert_array_equal(env.step(action).reward, twin.step(action).reward)  # not yet in force
    env.reset()
    twin.reset()
    reward, plain = env.step(action).reward, twin.step(action).reward
    control = 0.1 * (action**2).sum(axis=1)
    assert abs(plain[0] + control[0]) > 1e-3
    assert reward[0] + control[0] == pytest.approx(-(plain[0] + control[0]), abs=1e-12)
    assert reward[1] == plain[1]


def test_bounds_of_health():
    env = MuJoCo("swimmer").make(3, seed=0)
    env.reset()
    sim = env._sim
    sim.field("qpos")[:, 1] = 0.2, 0.6, 1.0
    assert inside(sim, 0.2, 1.0, index=1, closed=True).tolist() == [True, True, True]
    assert inside(sim, 0.2, 1.0, index=1).tolist() == [False, True, False]
    sim.motion[:, 2:] = 0.0
    sim.motion[1, -1] = -3.0
    sim.motion[2, 2] = 2.9
    assert all_inside(sim, -3.0, 3.0, skip=2).tolist() == [True, False, True]


def test_contact_terms_by_hand():
    sim = MuJoCo("ant").make(2, seed=0)._sim
    sim.contact_forces[0, 1, :3] = 3.0, -0.5, 0.0
    sim.contact_forces[1, 2, :2] = -4.0, 2.0
    assert contact_forces(sim, 1.0)[0, :3].tolist() == [1.0, -0.5, 0.0]
    assert contact_forces(sim)[0, 0] == 3.0
    # 9 + 1/4 and 16 + 4; clipped to 1: 1 + 1/4 and 1 + 1
    assert contact_cost(sim, 0.5).tolist() == [4.625, 10.0]
    assert contact_cost(sim, 0.5, ceiling=5.0).tolist() == [4.625, 5.0]
    assert contact_cost(sim, 0.5, limit=1.0).tolist() == [0.625, 1.0]


def test_body_mass_of_one_environment():
    robot, num_envs = "half_cheetah", 3
    env, plain = (MuJoCo(robot).make(num_envs, seed=1) for _ in range(2))
    mass = env._tasks.default("model.body_mass")
    mass[1] *= np.linspace(1.0, 2.0, mass.shape[1])
    env.set_tasks({"model.body_mass": mass})
    (_, reference, _) = gymnasium_envs(robot, num_envs, 1, 1000)
    model = reference.unwrapped.model
    model.body_mass[:] = mass[1]
    mujoco.mj_setConst(model, mujoco.MjData(model))
    np.testing.assert_array_equal(env.reset(), plain.reset())
    reference.reset()
    rng = np.random.default_rng(0)
    for _ in range(100):
        action = rng.uniform(-1, 1, (num_envs, 6))
        result, untouched = env.step(action), plain.step(action)
        obs, reward, *_ = reference.step(action[1])
        np.testing.assert_allclose(result.obs[1], obs, rtol=0, atol=1e-9)
        assert result.reward[1] == pytest.approx(reward, abs=1e-9)
        np.testing.assert_array_equal(result.obs[[0, 2]], untouched.obs[[0, 2]])
    assert np.abs(result.obs[1] - untouched.obs[1]).max() > 0.1


def test_humanoid_is_paid_for_its_own_centre_of_mass():
    env = MuJoCo("humanoid").make(2, seed=1)
    mass = env._tasks.default("model.body_mass")
    mass[1, -1] += 5.0
    env.set_tasks({"model.body_mass": mass})
    (_, reference) = gymnasium_envs("humanoid", 2, 1, 1000)
    model = reference.unwrapped.model
    model.body_mass[:] = mass[1]
    mujoco.mj_setConst(model, mujoco.MjData(model))
    env.reset()
    reference.reset()
    rng = np.random.default_rng(0)
    for _ in range(15):
        action = rng.uniform(-1, 1, (2, 17))
        _, reward, *_ = reference.step(native(reference, action[1]))
        assert env.step(action).reward[1] == pytest.approx(reward, abs=1e-9)


@pytest.mark.parametrize("robot", ROBOTS)
def test_default_model_fields_change_nothing(robot):
    env, plain = (MuJoCo(robot).make(2, seed=0) for _ in range(2))
    env.set_tasks({"model.body_mass": env._tasks.default("model.body_mass")})
    np.testing.assert_array_equal(env.reset(), plain.reset())
    assert_identical(run(env, 40), run(plain, 40))


@pytest.mark.parametrize(
    ("robot", "tasks", "message"),
    [
        ("half_cheetah", {"goal": np.ones(2)}, r"'goal'.*direction.*model\.body_mass"),
        ("half_cheetah", {"model.body_mas": np.ones(2)}, r"model\.body_mas'.*model\.body_mass"),
        ("half_cheetah", {"model.opt.timestep": np.ones(2)}, "timestep"),
        ("half_cheetah", {"model.body_parentid": np.ones((2, 8))}, "body_parentid"),
        ("half_cheetah", {"direction": np.ones(3)}, r"shape \(2,\)"),
        ("half_cheetah", {"direction": np.array([1.0, np.nan])}, "finite"),
        ("inverted_pendulum", {"direction": np.ones(2)}, "no task parameter 'direction'"),
    ],
)
def test_bad_tasks(robot, tasks, message):
    env = MuJoCo(robot).make(2, seed=0)
    with pytest.raises(EnvError, match=message):
        env.set_tasks(tasks)


@pytest.mark.parametrize("value", [np.nan, 1e12])
def test_divergence_names_the_environment_and_its_step(value):
    env = MuJoCo("half_cheetah").make(3, seed=0)
    env.reset()
    run(env, 4)
    good = env.state_dict()
    env._sim.field("qvel")[1, 3] = value  # MuJoCo would replace this state by its default, silently
    with pytest.raises(EnvError, match="environment 1 diverged at its step 5"):
        env.step(np.zeros((3, 6)))
    env.reset(np.array([False, True, False]))
    assert np.isfinite(env.step(np.zeros((3, 6))).obs).all()
    env._sim.field("qvel")[1, 3] = value
    with pytest.raises(EnvError, match="environment 1 diverged at its step 2"):
        env.step(np.zeros((3, 6)))
    env.load_state_dict(good)
    assert np.isfinite(env.step(np.zeros((3, 6))).obs).all()


@pytest.mark.parametrize("robot", GYMNASIUM_IDS)
def test_the_time_limit_is_gymnasiums(robot):
    env = MuJoCo(robot).make(1, seed=0)
    assert env.spec.max_episode_steps == gymnasium.spec(GYMNASIUM_IDS[robot]).max_episode_steps
    assert MuJoCo(robot, max_episode_steps=1).make(1, seed=0).spec.max_episode_steps == 1


def test_an_error_of_mujoco_names_the_environment_and_its_step(monkeypatch):
    env = MuJoCo("hopper").make(3, seed=0)
    env.reset()
    run(env, 1)

    def overflow(batch, nstep):
        raise SimulationError(np.array([1, 2]), "stack overflow")

    monkeypatch.setattr(Batch, "step", overflow)
    with pytest.raises(EnvError, match=r"mujoco/hopper: environment 1 failed at its step 2: .* stack overflow"):
        env.step(np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"robot": "cheetah"}, "'cheetah'.*half_cheetah"),
        ({"robot": "ant", "max_episode_steps": 0}, "max_episode_steps"),
        ({"robot": "ant", "threads": -1}, "threads"),
    ],
)
def test_factory_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        MuJoCo(**arguments)


def test_actions_are_mapped_to_the_native_bounds():
    env = MuJoCo("humanoid").make(2, seed=0)
    env.reset()
    env.step(np.stack([np.ones(17), -0.5 * np.ones(17)]))
    np.testing.assert_array_equal(env._sim.field("ctrl")[0], np.full(17, 0.4))
    np.testing.assert_allclose(env._sim.field("ctrl")[1], np.full(17, -0.2), rtol=1e-15)


def test_an_actuator_without_a_range_is_refused(tmp_path):
    """Its bounds would be (0, 0), and every action 0."""
    model = locomotion.load_model(ROBOTS["hopper"])
    model.actuator_ctrlrange[1] = 0.0
    path = tmp_path / "hopper.mjb"
    mujoco.mj_saveModel(model, str(path), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locomotion, "load_model", lambda robot: mujoco.MjModel.from_binary_path(str(path)))
        with pytest.raises(EnvError, match=r"hopper: actuators \[1\] have no ctrlrange"):
            MuJoCo("hopper").make(1, seed=0)
