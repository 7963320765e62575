"""Recipes of networks: nested factories survive a checkpoint; what would not is refused before it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

import lit_metarl
from lit_metarl.algorithms import SAC
from lit_metarl.nn import GaussianMLP, TanhGaussianMLP
from lit_metarl.nn.recipe import from_recipe, recipe_of
from lit_metarl.types import ConfigError

NESTED = """
from dataclasses import dataclass, field
from torch import nn
from lit_metarl.nn import ActorFactory, TanhGaussianMLP

@dataclass(frozen=True)
class Scaled:
    scale: float = 2.0

@dataclass(frozen=True)
class Wrapped(ActorFactory):
    inner: ActorFactory = field(default_factory=TanhGaussianMLP)
    scales: tuple[Scaled, ...] = ()

    def build(self, sizes):
        actor = self.inner.build(sizes)
        with __import__("torch").no_grad():
            for scaled in self.scales:
                actor.trunk[-1].weight.mul_(scaled.scale)
        return actor
"""


def test_a_nested_factory_is_loaded_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nested_actor.py").write_text(NESTED)
    monkeypatch.syspath_prepend(tmp_path)
    from nested_actor import Scaled, Wrapped

    factory = Wrapped(TanhGaussianMLP((8,)), (Scaled(3.0), Scaled(0.5)))
    recipe = recipe_of(factory)
    head = {"initialisation": "orthogonal", "output_bound": None, "clamp_log_std": False}
    assert recipe == {
        "class_path": "nested_actor.Wrapped",
        "init_args": {
            "inner": {"class_path": "lit_metarl.nn.actors.TanhGaussianMLP", "init_args": {"hidden": [8]} | head},
            "scales": [
                {"class_path": "nested_actor.Scaled", "init_args": {"scale": 3.0}},
                {"class_path": "nested_actor.Scaled", "init_args": {"scale": 0.5}},
            ],
        },
    }
    assert from_recipe(recipe).inner == TanhGaussianMLP([8])
    del recipe["init_args"]["inner"]["init_args"]["output_bound"]  # as of an earlier version
    assert from_recipe(recipe).inner == TanhGaussianMLP([8])
    module = SAC(3, 2, actor=factory)
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    obs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    expected = module.act(torch.from_numpy(obs)).detach().numpy()
    np.testing.assert_array_equal(lit_metarl.load_policy(tmp_path / "a.ckpt")(obs), expected)


@dataclass(frozen=True)
class Holds(GaussianMLP):
    value: object = None
    derived: int = field(default=7, init=False)


@dataclass(frozen=True)
class Forgets(GaussianMLP):
    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", [*self.hidden, 1])


def test_every_primitive_comes_back() -> None:
    value = {"a": [1, 2.5, True, None, "text"], "b": {"deep": GaussianMLP([4])}}
    assert from_recipe(recipe_of(Holds([2], value=value))) == Holds([2], value=value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1), r"Holds.value = tensor\(\[0.\]\) cannot be saved"),
        ({"deep": [np.float64(1.0)]}, r"Holds.value\['deep'\]\[0\] = np.float64\(1.0\) cannot be saved"),
        (TanhGaussianMLP, "Holds.value = <class"),
    ],
)
def test_what_no_checkpoint_can_hold_is_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(Holds(value=value))


def test_a_policy_that_could_not_be_loaded_is_refused_before_it_is_trained() -> None:
    @dataclass(frozen=True)
    class Local(TanhGaussianMLP):
        pass

    class Plain(TanhGaussianMLP):
        def __init__(self, build_it: Callable[[], object]) -> None:
            object.__setattr__(self, "hidden", (4,))

    with pytest.raises(ConfigError, match=r"Local cannot be imported .*define it at the top of a module"):
        SAC(3, 2, actor=Local())
    with pytest.raises(ConfigError, match=r"Forgets.* cannot be saved .* gives back"):
        recipe_of(Forgets([3]))
    with pytest.raises(ConfigError, match="cannot be imported"):
        SAC(3, 2, actor=Plain(dict))


@pytest.mark.parametrize("path", ["os.getenv", "collections.OrderedDict"])
def test_a_checkpoint_calls_nothing_but_dataclasses(path: str) -> None:
    with pytest.raises(ConfigError, match=f"{path} is no dataclass"):
        from_recipe({"class_path": path, "init_args": {"key": "PATH"}})
