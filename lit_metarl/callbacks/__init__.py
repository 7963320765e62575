"""Callbacks: checkpoints, run record, progress bar, tables and films."""

from lit_metarl.callbacks.checkpoint import RunCheckpoint
from lit_metarl.callbacks.progress import ProgressBar
from lit_metarl.callbacks.results import EpisodeVideo, TestTable
from lit_metarl.callbacks.tracking import RunRecord

__all__ = ["EpisodeVideo", "ProgressBar", "RunCheckpoint", "RunRecord", "TestTable"]
