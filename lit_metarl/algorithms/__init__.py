"""The algorithms, each a LightningModule with manual optimization."""

from lit_metarl.algorithms.sac import SAC

__all__ = ["SAC"]
