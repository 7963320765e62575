"""The base of all DataModules: simulators, streams, evaluation episodes, exact resume."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_metarl.data.stepping import finite_action
from lit_metarl.data.streams import Stream, derive_seed, global_state, load_global_state, seed_global
from lit_metarl.envs.base import EnvError, EnvFactory, EnvSpec
from lit_metarl.processes import gather_states
from lit_metarl.types import ConfigError, State, require

SCHEMA = "lit_metarl.experience/4"


class Loader:
    """Endless iterable with a length.

    Without ``__len__`` the Trainer fetches one batch ahead, so every batch would have been collected by a policy that
    is one update old.
    """

    def __init__(self, length: int, next_batch: Callable[[], Any]) -> None:
        self.length = length
        self.next_batch = next_batch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.next_batch()

    def state_dict(self) -> State:
        """No state: the DataModule has all. The method tells Lightning that nothing is lost within an epoch."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Do nothing: the DataModule has all state."""


class ExperienceDataModule(LightningDataModule):
    """Owns simulators, buffers and random streams; hands out batches of experience.

    The module that trains is found through ``trainer.lightning_module`` and used through a protocol of
    :mod:`lit_metarl.types` only. One epoch is a fixed number of batches; all state is in the checkpoint, every
    process's own.

    Args:
        env: the simulator.
        seed: root of every random stream; each process and use gets its own child.
        split_counts: counts of which every process takes an equal part, by the setting's name.
        video_size: width and height in pixels of the episode that ``predict`` films.

    Raises:
        ConfigError: an impossible value, or an environment that cannot be built.
    """

    def __init__(
        self,
        env: EnvFactory,
        seed: int,
        split_counts: Mapping[str, int],
        video_size: tuple[int, int],
    ) -> None:
        super().__init__()
        require(seed >= 0, "data.seed", seed, "seeds are non-negative integers")
        for key, number in split_counts.items():
            require(number >= 1, f"data.{key}", number, "it must be at least 1")
        self.env_factory = env
        self.seed = seed
        self.split_counts = split_counts
        self.video_size = video_size
        self.spec = self._read_spec()
        self._bound: Any = None
        self._restored: State | None = None
        self._first_batch = True

    def _read_spec(self) -> EnvSpec:
        try:
            env = self.env_factory.make(1, self.seed)
        except (ValueError, EnvError, ImportError) as error:
            raise ConfigError(f"data.env = {self.env_factory!r} cannot be built: {error}") from error
        env.reset()  # what cannot be saved may only appear in the first episode
        spec, self.resumes_exactly, self.resume_note = env.spec, env.resumes_exactly, env.resume_note
        env.close()
        return spec

    @property
    def obs_dim(self) -> int:
        """O, the length of the flat observation."""
        return self.spec.obs_dim

    @property
    def action_dim(self) -> int:
        """A, the length of the action; ``ConfigError`` for an environment with discrete actions."""
        if self.spec.num_actions is not None:
            raise ConfigError(
                f"data.env = {self.spec.name} has {self.spec.num_actions} discrete actions, "
                "but this algorithm acts in a continuous box; choose an environment with a Box action space"
            )
        return self.spec.action_dim

    @property
    def num_actions(self) -> int | None:
        """Number of discrete actions; None if continuous."""
        return self.spec.num_actions

    @property
    def context_dim(self) -> int:
        """C, the number of entries of the context that the policy is told."""
        return 0

    @property
    def action_scale(self) -> float:
        """Factor between the policy's actions and the simulator's range [-1, 1]."""
        return 1.0

    # What a kind of experience adds -----------------------------------------------------------------------------

    expected_policy: ClassVar[tuple[type, str]]
    """The protocol that the module must follow, and the algorithms that do."""

    @abstractmethod
    def build(self) -> None:
        """Create this process's collectors and buffers for training; called once in ``setup("fit")``."""

    @abstractmethod
    def next_batch(self) -> Any:
        """Collect with the current policy and return the batch of one training step."""

    @property
    @abstractmethod
    def batches_per_epoch(self) -> int:
        """Length of an epoch in training steps."""

    @abstractmethod
    def experience_state(self) -> State:
        """Collectors, buffers and counters of this process, as tensors and Python scalars."""

    @abstractmethod
    def load_experience_state(self, state: State) -> None:
        """Inverse of :meth:`experience_state`."""

    @abstractmethod
    def evaluate(self) -> Any:
        """This process's share of an evaluation during training."""

    @abstractmethod
    def test(self) -> Any:
        """This process's share of ``test``, from streams that neither training nor evaluation uses."""

    @abstractmethod
    def film(self) -> Any:
        """Film episodes for ``predict``."""

    def evaluation_state(self) -> State | None:
        """The state that one evaluation leaves for the next; None if there is none."""
        return None

    def load_evaluation_state(self, state: State) -> None:
        """Inverse of :meth:`evaluation_state`."""

    # Lightning -----------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Any:
        """The module in training, a ``Policy`` or a ``MetaPolicy``."""
        if self._bound is not None:
            return self._bound
        assert self.trainer is not None
        return self.trainer.lightning_module

    def bind(self, policy: Any) -> None:
        """Let ``policy``, a module, act without a Trainer: for :meth:`evaluate`, :meth:`test` and :meth:`film`."""
        self._bound = policy

    @property
    def frame_period(self) -> int:
        """Agent steps between two pictures of a film, of which a second has about 30."""
        return max(1, round(1.0 / (30.0 * self.spec.frame_dt)))

    @property
    def policy_device(self) -> torch.device:
        """The device that the module in training is on."""
        module: Any = self.policy
        return module.device

    def finite_action(self, action: Tensor) -> Tensor:
        """``action`` of the policy, of its shape, on the CPU; raises :class:`DivergenceError` if it is not finite."""
        return finite_action(self.policy, action)

    @property
    def rank(self) -> int:
        """This process's number, 0 without a Trainer."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        """Number of processes, 1 without a Trainer."""
        return 1 if self.trainer is None else self.trainer.world_size

    def stream_seed(self, stream: Stream) -> int:
        """Seed of one use of randomness in this process."""
        return derive_seed(self.seed, self.rank, stream)

    def setup(self, stage: str) -> None:
        """Build the simulators that ``stage`` needs; ``ConfigError`` for a module that this data is not for."""
        if self.trainer is not None:
            protocol, described = self.expected_policy
            remedy = f"{type(self).__name__} feeds {described}; choose a model or data of the other kind"
            require(isinstance(self.policy, protocol), "model", type(self.policy).__name__, remedy)
        for key, number in self.split_counts.items():
            remedy = f"each of the {self.world_size} processes runs an equal share; use a multiple"
            require(number % self.world_size == 0, f"data.{key}", number, remedy)
        if stage == "fit":
            self.build()
        self._first_batch = True

    def train_dataloader(self) -> Loader:
        """Batches of experience, ``batches_per_epoch`` an epoch."""
        return Loader(self.batches_per_epoch, self._next_train_batch)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move ``batch`` to ``device``, except to the CPU, where walking through it would cost as much as acting."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def val_dataloader(self) -> Loader:
        """One batch: this process's share of the evaluation."""
        return Loader(1, self.evaluate)

    def test_dataloader(self) -> Loader:
        """One batch: this process's share of the test."""
        return Loader(1, self.test)

    def predict_dataloader(self) -> Loader:
        """One batch: the film."""
        return Loader(1, self.film)

    def _next_train_batch(self) -> Any:
        if self._first_batch:
            # Not in setup: Lightning's own set-up, and every callback's, may draw from the global streams before this.
            self._first_batch = False
            if self._restored is None:
                # Lightning finds a DataModule's state by class name, and restores nothing, silently, if that differs.
                resumed, name = self.trainer is not None and self.trainer.ckpt_path, type(self).__qualname__
                remedy = "the checkpoint holds no state of this DataModule to resume from"
                require(not resumed, "data", name, remedy)
                seed_global(self.stream_seed(Stream.GLOBAL))
            else:
                load_global_state(self._restored["global_streams"])
                self._restored = None
        return self.next_batch()

    # Resume --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Every process's experience, evaluation environments and global streams, gathered on process 0."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return {}
        local = {
            "experience": self.experience_state(),
            "evaluation": self.evaluation_state(),
            "global_streams": global_state() if self._restored is None else self._restored["global_streams"],
        }
        return {
            "schema": SCHEMA,
            "env": self.spec.name,
            "split_counts": dict(self.split_counts),
            "ranks": gather_states(local),
        }

    def load_state_dict(self, state: State) -> None:
        """Inverse of :meth:`state_dict`; only training resumes, evaluation of a checkpoint starts afresh.

        Raises:
            ConfigError: the checkpoint is of another environment, number of processes or kind of experience.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        self.check_state(state)
        local = state["ranks"][self.rank]
        try:
            self.load_experience_state(local["experience"])
        except ValueError as error:
            raise ConfigError(f"the checkpoint cannot be resumed with this config: {error}") from error
        # With other numbers evaluation starts afresh; the change is reported with the other settings.
        if local["evaluation"] is not None and state["split_counts"] == self.split_counts:
            self.load_evaluation_state(local["evaluation"])
        self._restored = local

    def check_state(self, state: State) -> None:
        """Raise :class:`ConfigError` unless ``state`` was saved by this kind of experience."""
        require(
            state.get("schema") == SCHEMA,
            "checkpoint schema",
            state.get("schema"),
            f"this version resumes {SCHEMA}; use the version of lit_metarl that wrote it",
        )
        require(
            state["env"] == self.spec.name,
            "checkpoint environment",
            state["env"],
            f"this run's environment is {self.spec.name}; resume with the config the checkpoint was written with",
        )
        require(
            len(state["ranks"]) == self.world_size,
            "checkpoint processes",
            len(state["ranks"]),
            f"this run has {self.world_size}; set trainer.devices and trainer.num_nodes as in the checkpoint",
        )


def cpu_generator(seed: int) -> torch.Generator:
    """Generator on the CPU, so that exploration does not depend on the device of the policy."""
    return torch.Generator().manual_seed(seed)
