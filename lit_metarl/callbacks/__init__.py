"""Callbacks: checkpoints, run record, progress bar, tables, curves and films."""

from lit_metarl.callbacks.adaptation import AdaptationResults
from lit_metarl.callbacks.checkpoint import KeepCheckpoints, RunCheckpoint
from lit_metarl.callbacks.critic_gradient import CriticGradientMonitor, GradientProtocol
from lit_metarl.callbacks.gradients import GradientMonitor
from lit_metarl.callbacks.ntk import NTKMonitor
from lit_metarl.callbacks.progress import ProgressBar
from lit_metarl.callbacks.results import EpisodeVideo, TestTable
from lit_metarl.callbacks.tracking import RunRecord

__all__ = [
    "AdaptationResults",
    "CriticGradientMonitor",
    "EpisodeVideo",
    "GradientMonitor",
    "GradientProtocol",
    "KeepCheckpoints",
    "NTKMonitor",
    "ProgressBar",
    "RunCheckpoint",
    "RunRecord",
    "TestTable",
]
