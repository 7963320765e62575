"""dm_control adapter: equal to the bare suite, and what is saved of it."""

import numpy as np
import pytest
from oracles import rollout, through_file

from lit_metarl.envs.base import EnvError
from lit_metarl.envs.rendering import choose_backend
from lit_metarl.envs.saved_state import load_physics, mutable_parts, pack, packable, save_physics, shared, unpack
from lit_metarl.envs.suite import DMControl

choose_backend()
from dm_control import suite  # noqa: E402


def bare(task, seed, index=0):
    """The suite's own environment on stream ``index``."""
    child = np.random.SeedSequence(seed).spawn(index + 1)[index]
    return suite.load(*task.split("/"), task_kwargs={"random": np.random.RandomState(np.random.MT19937(child))})


def flat(observation):
    return np.concatenate([np.atleast_1d(part).ravel() for part in observation.values()]).astype(np.float32)


@pytest.mark.parametrize("task", ["cheetah/run", "pendulum/swingup", "quadruped/walk", "finger/turn_hard"])
def test_equals_bare_dm_control(task):
    env, reference = DMControl(task).make(2, seed=3), bare(task, seed=3, index=1)
    bounds = reference.action_spec()
    np.testing.assert_array_equal(env.reset()[1], flat(reference.reset().observation))
    rng = np.random.default_rng(0)
    for _ in range(30):
        action = rng.uniform(-1, 1, (2, env.spec.action_dim))
        native = (bounds.maximum + bounds.minimum) / 2 + (bounds.maximum - bounds.minimum) / 2 * action[1]
        result, expected = env.step(action), reference.step(native)
        assert result.obs.dtype == np.float32
        assert result.reward.dtype == np.float64
        np.testing.assert_array_equal(result.obs[1], flat(expected.observation))
        assert result.reward[1] == expected.reward


@pytest.mark.parametrize(
    ("task", "obs_dim", "action_dim", "dt"),
    [
        ("quadruped/run", 78, 12, 0.02),
        ("cheetah/run", 17, 6, 0.01),
        ("hopper/hop", 15, 4, 0.02),
        ("walker/run", 24, 6, 0.025),
    ],
)
def test_spec_has_the_published_dimensions(task, obs_dim, action_dim, dt):
    spec = DMControl(task).make(1, seed=0).spec
    assert (spec.obs_dim, spec.action_dim, spec.max_episode_steps, spec.num_actions) == (
        obs_dim,
        action_dim,
        1000,
        None,
    )
    assert spec.name == "dm_control/" + task.replace("/", "_")
    assert spec.frame_dt == pytest.approx(dt)


def test_quadruped_actions_are_scaled_to_native_bounds():
    """Its hip actuators reach 1.1, knees 1.0; ±1 must hit the bounds exactly."""
    env = DMControl("quadruped/walk").make(1, seed=0)
    env.reset()
    env.step(np.ones((1, 12), dtype=np.float32))
    physics = env._envs[0].physics
    np.testing.assert_array_equal(physics.data.ctrl, physics.model.actuator_ctrlrange[:, 1])
    assert physics.data.ctrl.max() > 1.0


def test_unlimited_actuators_receive_the_action():
    env = DMControl("lqr/lqr_2_1").make(1, seed=0)
    env.reset()
    env.step(np.array([[0.25]]))
    assert env._envs[0].physics.data.ctrl[0] == 0.25
    assert env.spec.max_episode_steps is None


def test_time_limit_truncates_and_a_reset_is_asked_for():
    env = DMControl("pendulum/swingup", action_repeat=300).make(1, seed=0)
    assert env.spec.max_episode_steps == 4
    env.reset()
    action = np.zeros((1, 1))
    for _ in range(3):
        result = env.step(action)
        assert not result.truncated[0]
    result = env.step(action)
    assert result.truncated[0]
    assert not result.terminated[0]
    with pytest.raises(EnvError, match=r"environments \[0\] have no running episode"):
        env.step(action)
    env.reset(np.array([True]))
    assert not env.step(action).truncated[0]


def test_termination_is_not_truncation():
    """lqr ends with discount 0 once the state is at the origin, which we place it at."""
    env = DMControl("lqr/lqr_2_1").make(1, seed=0)
    env.reset()
    with env._envs[0].physics.reset_context():
        env._envs[0].physics.data.qpos[:] = 0.0
    result = env.step(np.zeros((1, 1)))
    assert result.terminated[0]
    assert not result.truncated[0]


def test_action_repeat_sums_rewards():
    repeated, single = DMControl("cheetah/run", action_repeat=4).make(1, 5), DMControl("cheetah/run").make(1, 5)
    np.testing.assert_array_equal(repeated.reset(), single.reset())
    action = np.full((1, 6), 0.7)
    for _ in range(5):
        result = repeated.step(action)
        parts = [single.step(action) for _ in range(4)]
        assert result.reward[0] == sum(part.reward[0] for part in parts)
        np.testing.assert_array_equal(result.obs, parts[-1].obs)
    assert repeated.spec.frame_dt == pytest.approx(0.04)
    assert repeated.spec.max_episode_steps == 250


@pytest.mark.parametrize("task", ["humanoid/walk", "ball_in_cup/catch", "quadruped/walk"])
def test_derived_quantities_are_restored(task):
    env, other = DMControl(task).make(1, seed=1), DMControl(task).make(1, seed=2)
    env.reset()
    rollout(env, np.random.default_rng(0).uniform(-1, 1, (20, 1, env.spec.action_dim)))
    other.load_state_dict(env.state_dict())
    left, right = env._envs[0].physics.data, other._envs[0].physics.data
    for name in ("xpos", "sensordata", "qacc", "qacc_warmstart", "cvel", "efc_J", "efc_aref", "time"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    assert left.ncon == right.ncon


def test_resumes_before_the_first_and_after_the_last_step():
    env, other = DMControl("pendulum/swingup", 500).make(2, seed=1), DMControl("pendulum/swingup", 500).make(2, seed=7)
    other.reset()
    other.load_state_dict(through_file(env.state_dict()))
    assert other.needs_reset.all()
    np.testing.assert_array_equal(env.reset(), other.reset())
    for _ in range(2):
        env.step(np.zeros((2, 1)))
    other.load_state_dict(through_file(env.state_dict()))
    with pytest.raises(EnvError, match="no running episode"):
        other.step(np.zeros((2, 1)))
    np.testing.assert_array_equal(env.reset(), other.reset())


def test_what_two_attributes_could_share_is_found_at_any_depth():
    array, items, generator = np.zeros(2), [1], np.random.default_rng(0)
    value = [array, (items, {"deep": (generator, "text")}), 3]
    found = list(mutable_parts(value))
    for part in (value, array, items, value[1][1], generator):
        assert any(part is one for one in found)
    assert len(found) == 5
    parts = [("left", part) for part in mutable_parts([array])] + [("right", part) for part in mutable_parts((array,))]
    assert "left and right share one object" in list(shared(parts))
    parts = [("left", array), ("right", array[:1]), ("third", np.zeros(2))]
    assert list(shared(parts)) == ["left and right share memory"]


def test_physics_of_another_model_is_refused():
    physics = DMControl("pendulum/swingup").make(1, seed=0)._envs[0].physics
    for part, name in (("model", "geom_friction"), ("data", "xpos")):
        state = save_physics(physics.model.ptr, physics.data.ptr)
        state[part][name] = pack(np.ones((1, 3)))  # which would spread to all rows, silently
        with pytest.raises(EnvError, match=rf"another model: {name} is \(1, 3\)"):
            load_physics(physics.model.ptr, physics.data.ptr, state)


def test_state_of_another_task_is_refused():
    state = DMControl("cheetah/run").make(2, seed=0).state_dict()
    with pytest.raises(EnvError, match=r"2 x dm_control/cheetah_run.*1 x dm_control/cheetah_run"):
        DMControl("cheetah/run").make(1, seed=0).load_state_dict(state)
    with pytest.raises(EnvError, match="walker_run"):
        DMControl("walker/run").make(2, seed=0).load_state_dict(state)


def test_diverging_physics_names_environment_and_step():
    env = DMControl("cheetah/run").make(2, seed=0)
    env.reset()
    env.step(np.zeros((2, 6)))
    env._envs[1].physics.data.qvel[:] = 1e12
    with pytest.raises(EnvError, match="diverged in environment 1, step 1"):
        env.step(np.zeros((2, 6)))


@pytest.mark.parametrize("task", ["cheetah/rum", "cheeta/run", "cheetah", "cheetah_run"])
def test_unknown_task_names_close_ones(task):
    with pytest.raises(ValueError, match=rf"no task '{task}'. Did you mean .*cheetah/run.*Available: acrobot"):
        DMControl(task).make(1, seed=0)


@pytest.mark.parametrize(("num_envs", "repeat"), [(0, 1), (1, 0)])
def test_there_is_at_least_one_environment_and_one_step(num_envs, repeat):
    with pytest.raises(ValueError, match=rf"num_envs \({num_envs}\) and action_repeat \({repeat}\) must be at least"):
        DMControl("cheetah/run", action_repeat=repeat).make(num_envs, seed=0)


def test_pack_keeps_values_and_types():
    value = {"a": [np.float32(1.5), (1, None, "x")], 3: np.arange(3, dtype=np.int8), "b": np.array(2.0), "e": {}}
    back = unpack(through_file(pack(value)))
    assert packable(value)
    assert list(back) == list(value)
    assert back["a"] == value["a"]
    assert type(back["a"][0]) is np.float32
    assert back[3].dtype == np.int8
    assert isinstance(back["b"], np.ndarray)
    assert back["e"] == {}


@pytest.mark.parametrize(
    "value",
    [
        object(),
        1j,
        np.complex64(1.0),
        np.longdouble(1.0),
        np.array(["text"]),
        np.bytes_(b"scalar"),
        np.array([None]),
        np.zeros(1, dtype=[("a", "f8")]),
        {1, 2},
        {"key": object()},
        {(object(),): 1},
        type("Own", (dict,), {})(a=1),
        type("Number", (float,), {})(1.0),
    ],
)
def test_what_would_not_come_back_as_it_was_is_not_packed(value):
    assert not packable(value)
    assert not packable([(value,)])
