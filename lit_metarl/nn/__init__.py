"""Networks; what a config names by class path."""

from lit_metarl.nn.actors import ActorFactory, TanhGaussianMLP
from lit_metarl.nn.critics import CriticFactory, EnsembleCriticMLP

__all__ = ["ActorFactory", "CriticFactory", "EnsembleCriticMLP", "TanhGaussianMLP"]
