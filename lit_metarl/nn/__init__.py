"""Networks and baselines, which a config names by class path."""

from lit_metarl.nn.actors import ActorFactory, DeterministicMLP, HyperActor, TanhGaussianMLP
from lit_metarl.nn.baselines import Baseline, BaselineFactory, LinearFeature, LinearTime, NoBaseline, TimeMean
from lit_metarl.nn.context_encoder import ContextEncoderFactory, ProductOfGaussians
from lit_metarl.nn.control_variates import ActionDependentBaseline, ActionDependentLinear
from lit_metarl.nn.critics import (
    CriticFactory,
    D2RLCritic,
    EnsembleCriticMLP,
    HyperCritic,
    ResNetCritic,
    ResNetFeatures,
)
from lit_metarl.nn.hyper_initialisation import BiasHyper, HyperFanIn, HyperInitialisation, Released
from lit_metarl.nn.meta_baseline import MetaLearned
from lit_metarl.nn.policies import CategoricalMLP, GaussianMLP, HyperGaussian, PolicyFactory

__all__ = [
    "ActionDependentBaseline",
    "ActionDependentLinear",
    "ActorFactory",
    "Baseline",
    "BaselineFactory",
    "BiasHyper",
    "CategoricalMLP",
    "ContextEncoderFactory",
    "CriticFactory",
    "D2RLCritic",
    "DeterministicMLP",
    "EnsembleCriticMLP",
    "GaussianMLP",
    "HyperActor",
    "HyperCritic",
    "HyperFanIn",
    "HyperGaussian",
    "HyperInitialisation",
    "LinearFeature",
    "LinearTime",
    "MetaLearned",
    "NoBaseline",
    "PolicyFactory",
    "ProductOfGaussians",
    "Released",
    "ResNetCritic",
    "ResNetFeatures",
    "TanhGaussianMLP",
    "TimeMean",
]
