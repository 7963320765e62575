"""Task families of one's own, each one short class: of a MuJoCo robot, of a point world, and of a Gymnasium class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gymnasium
import numpy as np

from lit_metarl.envs.gym import Gymnasium
from lit_metarl.envs.locomotion import Locomotion
from lit_metarl.envs.points import PointWorld
from lit_metarl.envs.robots import ROBOTS, Motion, root_position
from lit_metarl.envs.tasks import TaskFamily


# A MuJoCo model: a cart that has to bring its pole to a place. ``model_file`` may be the path of any MJCF file.
def closeness(position, velocity, goal):
    return -np.abs(position - goal)


@dataclass(frozen=True)
class CartGoal(TaskFamily):
    reach: float = 0.8

    def make(self, num_envs, seed):
        motion = Motion(closeness, parameter="goal", default=0.0)
        cart = replace(ROBOTS["inverted_pendulum"], position=root_position, motion=motion)
        return Locomotion("cart_goal", cart, num_envs, seed, max_episode_steps=50)

    def sample(self, num_tasks, generator, split="train"):
        return {"goal": generator.uniform(-self.reach, self.reach, num_tasks)}


# A Gymnasium class with ``set_task``: nothing else is needed.
class Reach(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    max_episode_steps = 20

    def set_task(self, task):
        self.target = float(task["target"])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.count = self.np_random.normal(size=1).astype(np.float32), 0
        return self.x, {}

    def step(self, action):
        self.x, self.count = self.x + action, self.count + 1
        return self.x, -abs(float(self.x[0]) - self.target), False, self.count >= self.max_episode_steps, {}


@dataclass(frozen=True)
class ReachTasks(TaskFamily):
    def make(self, num_envs, seed):
        return Gymnasium(f"{__name__}.Reach").make(num_envs, seed)

    def sample(self, num_tasks, generator, split="train"):
        return {"target": generator.uniform(-1.0, 1.0, num_tasks)}


# A point world, vectorised in NumPy.
@dataclass(frozen=True)
class Ring(PointWorld):
    name = "ring"
    default_goal = (1.0, 0.0)
    view = 1.5

    def sample(self, num_tasks, generator, split="train"):
        angle = generator.uniform(0, 2 * np.pi, num_tasks)
        return {"goal": np.stack([np.cos(angle), np.sin(angle)], axis=1)}

    def start(self, stream):
        return np.zeros(2)

    def move(self, state, action):
        return state + 0.1 * action

    def reward(self, before, after, goal):
        return -np.linalg.norm(after - goal, axis=1)
