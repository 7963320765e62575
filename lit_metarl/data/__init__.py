"""Experience: collectors, buffers and the DataModules that own them."""

from lit_metarl.data.replay_module import ReplayDataModule
from lit_metarl.data.task_replay_module import TaskReplayDataModule
from lit_metarl.data.trajectory_module import TrajectoryDataModule

__all__ = ["ReplayDataModule", "TaskReplayDataModule", "TrajectoryDataModule"]
