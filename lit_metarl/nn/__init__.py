"""Networks and baselines, which a config names by class path."""

from lit_metarl.nn.actors import ActorFactory, DeterministicMLP, TanhGaussianMLP
from lit_metarl.nn.baselines import Baseline, BaselineFactory, LinearFeature, LinearTime, NoBaseline, TimeMean
from lit_metarl.nn.critics import CriticFactory, EnsembleCriticMLP
from lit_metarl.nn.policies import CategoricalMLP, GaussianMLP, PolicyFactory

__all__ = [
    "ActorFactory",
    "Baseline",
    "BaselineFactory",
    "CategoricalMLP",
    "CriticFactory",
    "DeterministicMLP",
    "EnsembleCriticMLP",
    "GaussianMLP",
    "LinearFeature",
    "LinearTime",
    "NoBaseline",
    "PolicyFactory",
    "TanhGaussianMLP",
    "TimeMean",
]
