"""Experience: collectors, buffers and the DataModules that own them."""

from lit_metarl.data.replay_module import ReplayDataModule

__all__ = ["ReplayDataModule"]
