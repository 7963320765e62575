"""Gymnasium adapter: equal to the bare environments, strict with users' own, restored bit for bit where it says so."""

import collections
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from oracles import assert_identical, rollout, through_file
from resume_cases import assert_goes_on, env_case

from lit_metarl.envs.base import EnvError, make_streams
from lit_metarl.envs.gym import Gymnasium


class Custom(gymnasium.Env):
    """A counter in a box; subclasses break one thing each."""

    observation_space = spaces.Box(-np.inf, np.inf, (2, 2))
    action_space = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64)
    max_episode_steps = 7

    def __init__(self, offset=0.0):
        self.offset = offset
        self.count = 0

    def observe(self):
        return np.full((2, 2), self.count + self.offset, dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        self.offset = float(self.np_random.random())
        return self.observe(), {}

    def step(self, action):
        self.count += 1
        self.last_action = action
        return self.observe(), 1.0, False, self.count >= self.max_episode_steps, {}


class Broken(Custom):
    """Breaks its contract in one ``part`` of the second step's result."""

    parts: ClassVar = {
        "nan": (0, np.array([[0.0, np.nan], [0.0, 0.0]], dtype=np.float32)),
        "inf": (0, np.full((2, 2), np.inf, dtype=np.float32)),
        "huge": (0, np.array([[0.0, 1e39], [0.0, 0.0]])),
        "tiny": (0, np.array([[0.0, -1e39], [0.0, 0.0]])),
        "shape": (0, np.zeros(4, dtype=np.float32)),
        "ragged": (0, [[1.0], [1.0, 2.0]]),
        "text": (0, np.array([["a", "b"], ["c", "d"]])),
        "integers": (0, np.zeros((2, 2), dtype=np.int64)),
        "none": (0, None),
        "reward_nan": (1, float("nan")),
        "reward_none": (1, None),
        "reward_array": (1, np.zeros(1)),
        "reward_bool": (1, True),
        "terminated": (2, 1),
        "truncated": (3, None),
    }

    def __init__(self, part):
        super().__init__()
        self.part = part

    def step(self, action):
        result = list(super().step(action))
        if self.count == 2:
            if self.part == "raises":
                raise KeyError("lost")
            if self.part == "four":
                return tuple(result[:4])
            position, value = self.parts[self.part]
            result[position] = value
        return tuple(result)


class Overtime(Custom):
    """Ends ``late`` steps after the limit that it declares."""

    def __init__(self, late):
        super().__init__()
        self.late = late

    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, False, self.count >= self.max_episode_steps + self.late, {}


class Outside(Custom):
    """Leaves its box at the second step, for good, in float64; the upper bound is met from the start."""

    observation_space = spaces.Box(np.array([-1.0, -np.inf]), np.array([0.1, 2.0]), dtype=np.float64)

    def observe(self):
        return np.array([0.1, 2.0 + max(0, self.count - 1)])


class OutsideFloat32(Outside):
    observation_space = spaces.Box(*np.array([[-1.0, -np.inf], [0.1, 2.0]], dtype=np.float32))


class OutsideAtReset(Outside):
    def observe(self):
        return np.array([-1.5, 2.0])


class BadReset(Custom):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class Spaces(Custom):
    def __init__(self, observation=None, action=None):
        super().__init__()
        self.observation_space = observation or self.observation_space
        self.action_space = action or self.action_space


class IntegerObs(gymnasium.Env):
    """Discrete observation and action, both starting at 5."""

    observation_space = spaces.Discrete(3, start=5)
    action_space = spaces.Discrete(2, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 5, {}

    def step(self, action):
        if type(action) is not type(self.action_space.sample()):
            raise TypeError(f"{action!r} is no action")
        return action + 1, 0.0, action == 6, False, {}


class Choices(IntegerObs):
    """An integer action that starts at 0."""

    action_space = spaces.Discrete(2)

    def step(self, action):
        return super().step(action + 5)  # a sum with a Python int keeps the type


class Opaque(Custom):
    """Keeps its state in an object that cannot be saved."""

    def __init__(self):
        super().__init__()
        self.history = collections.deque()


class LateOpaque(Custom):
    def reset(self, *, seed=None, options=None):
        self.history = collections.deque()
        return super().reset(seed=seed)


class Aliased(Custom):
    """Two names for one array: restored as two arrays they would part."""

    def __init__(self):
        super().__init__()
        self.memory = np.zeros(4)
        self.tail = self.memory[2:]


class OwnState(Opaque):
    """Opaque, but answers for itself."""

    def observe(self):
        return super().observe() + np.float32(sum(self.history))

    def step(self, action):
        self.history.append(float(self.np_random.random()))
        return super().step(action)

    def state_dict(self):
        return {"history": np.array(self.history), "count": self.count, "offset": self.offset}

    def load_state_dict(self, state):
        self.history = collections.deque(state["history"].tolist())
        self.count, self.offset = state["count"], state["offset"]


class SamplesSpace(Custom):
    """Draws from its observation space's own generator, which is part of its state."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(0.0, 1.0, (2, 2))

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        return super().reset(seed=seed)

    def observe(self):
        return self.observation_space.sample()


class SamplesClassSpace(Custom):
    """Draws from a generator that all its instances share."""

    observation_space = spaces.Box(0.0, 1.0, (2, 2))

    def observe(self):
        return self.observation_space.sample()


class Tasked(Custom):
    """Is paid what its task says, from the reset that follows ``set_task``."""

    weight = 1.0
    told = ()

    def set_task(self, task):
        self.told = (*self.told, float(task["weight"]))
        self.weight = task["weight"]
        self.offsets = task["offsets"]

    def step(self, action):
        obs, _, *ends = super().step(action)
        return obs, float(self.weight), *ends


class TaskedOwnState(Tasked):
    """Answers for its state itself, and forgets the task."""

    def state_dict(self):
        return {"count": self.count, "offset": self.offset}

    def load_state_dict(self, state):
        self.count, self.offset = state["count"], state["offset"]


class TaskedOpaque(Tasked):
    """Keeps state that cannot be saved."""

    def __init__(self):
        super().__init__()
        self.history = collections.deque()


def custom(cls, **kwargs):
    return Gymnasium(f"{__name__}.{cls.__name__}", kwargs)


def random_actions(spec, num_envs, steps, seed=0):
    rng = np.random.default_rng(seed)
    if spec.num_actions is not None:
        return rng.integers(spec.num_actions, size=(steps, num_envs))
    return rng.uniform(-1, 1, (steps, num_envs, spec.action_dim)).astype(np.float32)


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1", "HalfCheetah-v5", "Hopper-v5"])
def test_equals_bare_gymnasium(name):
    env, reference = Gymnasium(name).make(2, seed=4), gymnasium.make(name)
    seed = int(make_streams(4, 2)[1].integers(2**31))
    obs = env.reset()
    np.testing.assert_array_equal(obs[1], reference.reset(seed=seed)[0].astype(np.float32))
    for action in random_actions(env.spec, 2, 60):
        native = action[1] if env.spec.num_actions else (action[1] * reference.action_space.high).astype(np.float32)
        result, expected = env.step(action), reference.step(native)
        np.testing.assert_array_equal(result.obs[1], expected[0].astype(np.float32))
        assert (result.reward[1], result.terminated[1], result.truncated[1]) == tuple(expected[1:4])
        if expected[2]:
            np.testing.assert_array_equal(
                env.reset(np.array([False, True]))[1], reference.reset()[0].astype(np.float32)
            )
        if result.terminated[0]:
            env.reset(np.array([True, False]))


def test_the_spec_is_the_registrys():
    spec = Gymnasium("Pendulum-v1").make(1, seed=0).spec
    assert (spec.name, spec.max_episode_steps, spec.frame_dt) == ("gym/Pendulum-v1", 200, 0.05)


class Clocked(Custom):
    """Knows its clock by an attribute, or by the pace of its pictures."""

    def __init__(self, dt, pace=None):
        super().__init__()
        self.dt = dt
        self.metadata = {} if pace is None else {"render_fps": pace}


@pytest.mark.parametrize(
    ("dt", "pace", "expected"),
    [
        (0.5, 10, 0.5),
        (2, 10, 2.0),
        (0.0, 10, 0.1),
        (-1.0, 10, 0.1),
        (None, 10, 0.1),
        (None, None, 0.02),
        (None, 0, 0.02),
    ],
)
def test_the_length_of_a_step_is_the_environments_or_that_of_its_pictures(dt, pace, expected):
    assert custom(Clocked, dt=dt, pace=pace).make(1, seed=0).spec.frame_dt == expected


def test_fallen_pole_is_termination():
    env = Gymnasium("CartPole-v1").make(1, seed=0)
    env.reset()
    for _ in range(30):  # pushed one way only, the pole falls in about ten steps
        result = env.step(np.array([1]))
        if result.terminated[0]:
            break
    assert result.terminated[0]
    assert not result.truncated[0]
    assert abs(result.obs[0, 2]) > 0.2  # the angle of the true successor, not of a new episode


def test_the_end_of_both_kinds_is_termination():
    for seed in range(20):
        env = Gymnasium("CartPole-v1", {"max_episode_steps": 9}).make(1, seed)
        env.reset()
        for _ in range(8):
            result = env.step(np.array([1]))
            if result.terminated[0]:
                break
        if not result.terminated[0] and (result := env.step(np.array([1]))).terminated[0]:
            assert not result.truncated[0]
            return
    pytest.fail("no seed let the pole fall in exactly the last step")


class Numpy(Custom):
    max_episode_steps = np.int64(7)


def test_a_time_limit_is_a_positive_whole_number():
    assert custom(Numpy).make(1, seed=0).spec.max_episode_steps == 7
    for limit in (0, -1, 7.0, "7", True, np.array([7])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Numpy, "max_episode_steps", limit)
            with pytest.raises(EnvError, match=r"max_episode_steps = .* is no time limit; use a positive whole number"):
                custom(Numpy).make(1, seed=0)


def test_actions_are_mapped_to_the_bounds_and_observations_flattened():
    env = custom(Custom, offset=1.0).make(1, seed=0)
    assert (env.spec.obs_dim, env.spec.action_dim, env.spec.max_episode_steps) == (4, 2, 7)
    assert env.reset().shape == (1, 4)
    for action, native in [([-1, -1], [-2, 0]), ([1, 1], [2, 1]), ([0.5, 0], [1, 0.5])]:
        env.step(np.array([action], dtype=np.float32))
        np.testing.assert_array_equal(env._envs[0].last_action, native)
        assert env._envs[0].last_action.dtype == np.float64


def test_discrete_spaces_honour_their_start():
    env = custom(IntegerObs).make(2, seed=0)
    assert (env.spec.obs_dim, env.spec.num_actions) == (3, 2)
    np.testing.assert_array_equal(env.reset(), [[1, 0, 0], [1, 0, 0]])
    result = env.step(np.array([0, 1]))  # natively 5 and 6, observed as 6 and 7
    np.testing.assert_array_equal(result.obs, [[0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(result.terminated, [False, True])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_discrete_actions_have_the_type_of_a_sample(dtype):
    for cls in (IntegerObs, Choices):  # both refuse any other
        env = custom(cls).make(2, seed=0)
        env.reset()
        np.testing.assert_array_equal(env.step(np.array([0, 1], dtype=dtype)).obs, [[0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("action", [np.array([2]), np.array([-1]), np.array([0.0]), np.array([[0]])])
def test_bad_discrete_actions_are_refused(action):
    env = Gymnasium("CartPole-v1").make(1, seed=0)
    env.reset()
    with pytest.raises(EnvError, match="CartPole-v1 takes"):
        env.step(action)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"observation": spaces.Dict({"a": spaces.Discrete(2)})}, r"observation space Dict.*FlattenObservation"),
        ({"observation": spaces.Tuple([spaces.Discrete(2)])}, "observation space Tuple"),
        ({"observation": spaces.MultiDiscrete([2, 3])}, "observation space MultiDiscrete"),
        ({"observation": spaces.Box(0, 255, (8, 8, 3), np.uint8)}, "uint8.*encode the image"),
        ({"action": spaces.MultiDiscrete([2, 3])}, r"action space MultiDiscrete.*ActionWrapper"),
        ({"action": spaces.Box(-np.inf, np.inf, (2,))}, r"action space Box\(-inf.*no finite bounds"),
        ({"action": spaces.Box(0, 3, (2,), np.int64)}, "action space Box.*int64"),
    ],
)
def test_unsupported_spaces_are_refused_by_name(kwargs, message):
    with pytest.raises(EnvError, match=message):
        custom(Spaces, **kwargs).make(1, seed=0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("nan", r"observation is not finite: \[ *0. +nan"),
        ("inf", "observation is not finite"),
        ("huge", r"observation does not fit into float32: \[.*1\.e\+39"),
        ("tiny", r"observation does not fit into float32: \[.*-1\.e\+39"),
        ("shape", r"observation must be an array of shape \(2, 2\) and type float32, but is an array of shape \(4,\)"),
        ("ragged", "inhomogeneous"),
        ("text", "type float32, but is an array .* type <U1"),
        ("integers", "type float32, but is an array .* type int64"),
        ("none", "but is NoneType"),
        ("reward_nan", "reward must be finite, but is nan"),
        ("reward_none", "reward must be one number, but is NoneType"),
        ("reward_array", r"reward must be one number, but is an array of shape \(1,\)"),
        ("reward_bool", "reward must be one number, but is bool True"),
        ("terminated", "terminated must be a bool, but is int 1"),
        ("truncated", "truncated must be a bool, but is NoneType"),
        ("raises", "step raised KeyError: 'lost'"),
        ("four", "step returned tuple"),
    ],
)
def test_a_broken_environment_is_named_with_index_and_step(part, message):
    env = custom(Broken, part=part).make(2, seed=0)
    env._envs[0].part = "fine"
    env._envs[0].parts = {"fine": (1, 1.0)}
    env.reset()
    env.step(np.zeros((2, 2)))
    with pytest.raises(EnvError, match=rf"Broken: environment 1, step 2 of its episode: .*{message}"):
        env.step(np.zeros((2, 2)))


class Far(Custom):
    """Starts where float32 does not reach, from its second episode on."""

    observation_space = spaces.Box(-np.inf, np.inf, (2, 2), dtype=np.float64)
    episodes = 0

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.episodes += 1
        return obs.astype(np.float64) + (1e39 if self.episodes > 1 else 3e38), info


def test_a_reset_beyond_float32_is_named():
    env = custom(Far).make(2, seed=0)
    assert (env.reset() == np.float32(3e38)).all()
    with pytest.raises(EnvError, match=r"Far: environment 1, step 0 of its episode: the observation does not fit into"):
        env.reset(np.array([False, True]))


@pytest.mark.parametrize("late", [1, 1000])
def test_an_environment_that_goes_on_beyond_its_own_limit_is_named(late):
    env = custom(Overtime, late=late).make(2, seed=0)
    env._envs[0].late = -1  # an end before the limit is fine
    env.reset()
    for step in range(1, 7):
        assert env.step(np.zeros((2, 2))).truncated.tolist() == [step == 6, False]
    env.reset(np.array([True, False]))
    message = "max_episode_steps = 7 but did not end its episode at step 7: return truncated = True there"
    with pytest.raises(EnvError, match=f"Overtime: environment 1, step 7 of its episode: it declares {message}"):
        env.step(np.zeros((2, 2)))


@pytest.mark.parametrize("cls", [Outside, OutsideFloat32])
def test_an_observation_outside_its_box_is_reported_once_and_used(cls):
    env, other = custom(cls).make(2, seed=0), custom(cls).make(2, seed=0)
    env._envs[0].observe = lambda: np.array([0.1, 2.0], dtype=np.float32)
    env.reset()
    env.step(np.zeros((2, 2)))  # another precision of the box, and a value on its bound, are fine
    where = "environment 1, step 2 of its episode: entry 1 of the observation"
    message = rf"{cls.__name__}: {where} is 3.0, outside the bounds \[-inf, 2.0\] of its Box\. .* widen the Box or clip"
    with pytest.warns(UserWarning, match=message) as record:
        result = env.step(np.zeros((2, 2)))
    assert len(record) == 1
    np.testing.assert_array_equal(result.obs, np.array([[0.1, 2.0], [0.1, 3.0]], dtype=np.float32))
    other.reset()
    for _ in range(3):  # nor again by another batch of this environment: a warning would be an error here
        result = other.step(np.zeros((2, 2)))
    assert result.obs[:, 1].tolist() == [4.0, 4.0]


def test_an_observation_outside_its_box_is_reported_at_reset():
    with pytest.warns(UserWarning, match=r"environment 0, step 0 .* entry 0 .* is -1.5, outside .* \[-1.0, 0.1"):
        custom(OutsideAtReset).make(1, seed=0).reset()


def test_bad_reset_is_named():
    with pytest.raises(EnvError, match=r"environment 0, step 0 .*reset returned .* instead of"):
        custom(BadReset).make(1, seed=0).reset()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Pendulun-v1", "knows no environment 'Pendulun-v1'. Did you mean Pendulum-v1"),
        ("Pendulum-v99", "Pendulum"),
        ("no_such_module.Env", "Cannot import the environment class 'no_such_module.Env'"),
        (f"{__name__}.NoSuchEnv", "Cannot import"),
        ("collections.OrderedDict", "not a subclass of gymnasium.Env"),
    ],
)
def test_unknown_environments(name, message):
    with pytest.raises(ValueError, match=message):
        Gymnasium(name).make(1, seed=0)


def test_there_is_at_least_one_environment():
    with pytest.raises(ValueError, match=r"num_envs \(0\) must be at least 1"):
        custom(Custom).make(0, seed=0)


@pytest.mark.parametrize("name", ["Custom", "OwnState", "SamplesSpace"])
def test_environments_of_ones_own_resume_in_mid_episode(name):
    """Those that are registered are in the contract of everything that resumes."""
    assert_goes_on(env_case(Gymnasium(f"{__name__}.{name}")))


def test_time_limit_counter_is_restored():
    env, other = Gymnasium("Pendulum-v1").make(1, seed=1), Gymnasium("Pendulum-v1").make(1, seed=2)
    env.reset()
    rollout(env, np.zeros((150, 1, 1)))
    other.load_state_dict(through_file(env.state_dict()))
    ends = [other.step(np.zeros((1, 1))).truncated[0] for _ in range(50)]
    assert ends == [False] * 49 + [True]


def test_an_attribute_of_later_is_removed():
    env = custom(Custom).make(1, seed=1)
    env.reset()
    state = env.state_dict()
    env.step(np.zeros((1, 2)))
    assert hasattr(env._envs[0], "last_action")
    env.load_state_dict(state)
    assert not hasattr(env._envs[0], "last_action")


def test_state_before_the_first_reset_and_after_an_end():
    env, other = Gymnasium("CartPole-v1").make(2, seed=1), Gymnasium("CartPole-v1").make(2, seed=2)
    other.reset()
    other.load_state_dict(through_file(env.state_dict()))
    assert other.needs_reset.all()
    np.testing.assert_array_equal(env.reset(), other.reset())
    while not env.needs_reset.any():
        env.step(np.array([1, 1]))
    other.load_state_dict(through_file(env.state_dict()))
    np.testing.assert_array_equal(env.needs_reset, other.needs_reset)
    np.testing.assert_array_equal(env.reset(env.needs_reset), other.reset(other.needs_reset))


@pytest.mark.parametrize(
    ("cls", "note"),
    [
        (Opaque, "Opaque.history is of type deque"),
        (LateOpaque, "LateOpaque.history is of type deque"),
        (Aliased, "Aliased.memory and Aliased.tail share memory"),
    ],
)
def test_other_environments_resume_at_the_next_episode_and_say_so(cls, note):
    env = custom(cls).make(2, seed=1)
    assert env.resumes_exactly == (cls is LateOpaque)  # which shows its state with the first reset only
    env.reset()
    assert not env.resumes_exactly
    assert note in env.resume_note
    assert "resumes at the next episode" in env.resume_note
    env.step(np.zeros((2, 2)))
    state = through_file(env.state_dict())
    resumed = []
    for seed in (2, 3):
        other = custom(cls).make(2, seed)
        other.reset()
        other.load_state_dict(state)
        assert other.needs_reset.all()
        with pytest.raises(EnvError, match="no running episode"):
            other.step(np.zeros((2, 2)))
        resumed.append(other.reset())
    np.testing.assert_array_equal(*resumed)  # the stream is the saved one, whatever the seed of the new process
    assert not np.array_equal(resumed[0], custom(cls).make(2, seed=1).reset())  # and does not repeat episodes


def test_a_generator_of_the_class_is_no_state_of_one_environment():
    env = custom(SamplesClassSpace).make(1, seed=0)
    env.reset()
    assert not env.resumes_exactly
    assert "draws from a space of its class" in env.resume_note


def test_own_state_that_no_checkpoint_can_hold_is_refused():
    env = custom(OwnState).make(1, seed=0)
    env.reset()
    env._envs[0].state_dict = lambda: {"history": collections.deque()}
    with pytest.raises(EnvError, match=r"OwnState.state_dict\(\) must return numbers"):
        env.state_dict()


def test_state_of_another_environment_is_refused():
    state = Gymnasium("Pendulum-v1").make(2, seed=0).state_dict()
    with pytest.raises(EnvError, match=r"2 x gym/Pendulum-v1, but this is 1 x gym/Pendulum-v1"):
        Gymnasium("Pendulum-v1").make(1, seed=0).load_state_dict(state)
    with pytest.raises(EnvError, match="CartPole"):
        Gymnasium("CartPole-v1").make(2, seed=0).load_state_dict(state)


def tasks_of(weight):
    return {"weight": np.array(weight), "offsets": np.array(weight)[:, None] * np.ones(3)}


def test_each_environment_is_told_its_own_task_once():
    env = custom(Tasked).make(2, seed=0)
    env.reset()
    env.set_tasks(tasks_of([2.0, 3.0]))
    env.reset(np.array([False, True]))
    assert [each.told for each in env._envs] == [(), (3.0,)]
    env.reset()
    env.reset()  # the task stays
    assert [each.told for each in env._envs] == [(2.0,), (3.0,)]
    assert env._envs[1].offsets.tolist() == [3.0] * 3


def test_a_wrapper_may_take_the_tasks():
    class Weighted(gymnasium.Wrapper):
        def set_task(self, task):
            self.weight = float(task["weight"])

    env = Gymnasium("CartPole-v1").make(1, seed=0)
    env._envs[0] = Weighted(env._envs[0])
    env.set_tasks({"weight": np.array([4.0])})
    env.reset()
    assert env._envs[0].weight == 4.0


@pytest.mark.parametrize("cls", [Tasked, TaskedOwnState])
def test_tasks_resume_bit_exactly_in_mid_episode(cls):
    env = custom(cls).make(2, seed=1)
    env.set_tasks(tasks_of([2.0, 3.0]))
    env.reset()
    env.step(np.zeros((2, 2)))
    env.set_tasks(tasks_of([4.0, 5.0]))  # in force only after the checkpoint
    env.reset(np.array([False, True]))
    assert env.resumes_exactly, env.resume_note
    state = through_file(env.state_dict())
    actions = np.zeros((12, 2, 2))
    expected = rollout(env, actions)
    for seed in (1, 2):
        other = custom(cls).make(2, seed)
        if seed == 2:
            other.set_tasks(tasks_of([8.0, 9.0]))
            other.reset()
        other.load_state_dict(state)
        resumed = rollout(other, actions)
        assert_identical(resumed, expected)
    assert resumed[1].tolist() == [2.0, 5.0]
    assert resumed[-3].tolist() == [4.0, 5.0]


def test_inexact_resume_tells_the_task_again():
    env, other = (custom(TaskedOpaque).make(2, seed) for seed in (1, 2))
    env.set_tasks(tasks_of([2.0, 3.0]))
    env.reset()
    other.load_state_dict(through_file(env.state_dict()))
    other.reset()
    assert other.step(np.zeros((2, 2))).reward.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("cls", "tasks", "message"),
    [
        (Custom, {"weight": np.ones(2)}, r"no task parameters, but was given \['weight'\].*define set_task\(task\)"),
        (Tasked, {"weight": np.ones(3)}, r"'weight' has to be 2 rows, got an array of shape \(3,\)"),
        (Tasked, {"weight": 1.0}, r"2 rows"),
        (Tasked, {"weight": np.array([None, "a"])}, r"2 rows.*object"),
    ],
)
def test_bad_tasks_are_refused(cls, tasks, message):
    with pytest.raises(EnvError, match=message):
        custom(cls).make(2, seed=0).set_tasks(tasks)


def test_a_task_that_an_environment_cannot_take_is_named():
    env = custom(Tasked).make(2, seed=0)
    env.set_tasks({"height": np.ones(2)})
    with pytest.raises(EnvError, match=r"environment 0.*set_task raised KeyError: 'weight'"):
        env.reset()


def test_no_tasks_need_no_method():
    custom(Custom).make(1, seed=0).set_tasks({})


def test_all_environments_are_closed():
    env, closed = custom(Custom).make(3, seed=0), []
    for each in env._envs:
        each.close = lambda each=each: closed.append(each)
    env.close()
    assert closed == env._envs


def test_no_pictures_is_said():
    env = custom(Custom).make(1, seed=0)
    env.reset()
    with pytest.raises(EnvError, match="draws no pictures"):
        env.render()
