"""Recipes: what a file may say, and one clear error for each kind of bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_cases import CONFIGS, PENDULUM, write_recipe

from lit_metarl.reports.benchmarks.critics import NAMES
from lit_metarl.sweep.recipe import Published, flags, load_recipe, read_seeds
from lit_metarl.types import ConfigError


def test_a_list_of_experiments_names_its_arms_by_file() -> None:
    recipe = load_recipe(write_recipe(experiments=[PENDULUM], seeds=[7, 3], grid={"model.gamma": [0.9, 0.99]}))
    assert [arm.name for arm in recipe.arms] == ["sac_small_pendulum"]
    assert recipe.arms[0].config["trainer"]["max_epochs"] == 6
    assert recipe.seeds == (7, 3)
    assert recipe.points() == [{"model.gamma": 0.9}, {"model.gamma": 0.99}]
    assert recipe.name == "swing"


def test_files_of_an_arm_are_merged_in_order_and_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "shorter.yaml").write_text("trainer: {max_epochs: 2}")
    arm = {"config": [PENDULUM, "../shorter.yaml"], "overrides": {"model.gamma": 0.9}}
    recipe = load_recipe(write_recipe("deep/r.yaml", experiments={"short": arm}))
    assert recipe.arms[0].config["trainer"]["max_epochs"] == 2
    assert recipe.arms[0].overrides == {"model.gamma": 0.9}
    assert recipe.points() == [{}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": 3}, "a key of swing.yaml = 'sedes' cannot be used: choose from title, note, experiments, grid,"),
        ({"title": None}, "title of swing.yaml = None cannot be used: say in one sentence what it shows."),
        ({"note": 3}, "note of swing.yaml = 3 cannot be used: write a text."),
        ({"experiments": None}, "experiments of swing.yaml = None cannot be used: write a list of experiment files"),
        ({"experiments": []}, "experiments of swing.yaml = [] cannot be used: write a list of experiment files"),
        ({"experiments": [3]}, "experiments of swing.yaml = 3 cannot be used: name a file, relative to ."),
        (
            {"experiments": ["gone.yaml"]},
            "experiments of swing.yaml: config file gone.yaml cannot be read: No such file",
        ),
        ({"experiments": [PENDULUM, PENDULUM]}, "two arms would be called ['sac_small_pendulum']"),
        ({"experiments": {"a": PENDULUM}}, "experiments.a of swing.yaml = '"),
        (
            {"experiments": {"a": {"files": [PENDULUM]}}},
            "a key of experiments.a of swing.yaml = 'files' cannot be used",
        ),
        ({"experiments": {"a": {"config": []}}}, "config of experiments.a of swing.yaml = [] cannot be used"),
        ({"grid": {"model.gamma": []}}, "grid.model.gamma of swing.yaml = [] cannot be used: write a list of at least"),
        ({"grid": {"model.gamma": 0.9}}, "grid.model.gamma of swing.yaml = 0.9 cannot be used: write a list"),
        ({"grid": [1]}, "grid of swing.yaml = [1] cannot be used: write a mapping of settings to lists"),
        ({"grid": {"gamma": [1]}}, "grid of swing.yaml = 'gamma' cannot be used: write a setting as on the command"),
        (
            {"grid": {"seed_everything": [1]}},
            "grid of swing.yaml = 'seed_everything' cannot be used: seeds are written",
        ),
        (
            {"overrides": {"optimizer.lr": 1}},
            "overrides of swing.yaml = 'optimizer.lr' cannot be used: write a setting",
        ),
        ({"overrides": [1]}, "overrides of swing.yaml = [1] cannot be used: write a mapping"),
        (
            {"seeds": 0},
            "seeds of swing.yaml = 0 cannot be used: write how many there are, or a list of different ones.",
        ),
        ({"seeds": True}, "seeds of swing.yaml = True cannot be used"),
        ({"seeds": [1, 1]}, "seeds of swing.yaml = [1, 1] cannot be used"),
        ({"seeds": [True]}, "seeds of swing.yaml = [True] cannot be used"),
        ({"metrics": "ntk/ratio"}, "metrics of swing.yaml = 'ntk/ratio' cannot be used: write a list of names"),
        ({"published": [1]}, "published of swing.yaml = [1] cannot be used: write a mapping of arms to {value: number"),
        (
            {"published": {"sca": {"value": 1, "source": "x"}}},
            "an arm of published of swing.yaml = 'sca' cannot be used: choose from sac.",
        ),
        ({"published": {"sac": -3}}, "published.sac of swing.yaml = -3 cannot be used: write a mapping"),
        ({"published": {"sac": {"value": "3"}}}, "published.sac of swing.yaml = {'value': '3'} cannot be used"),
        ({"published": {"sac": {"value": True, "source": "x"}}}, "published.sac of swing.yaml = {'value': True"),
        ({"published": {"sac": {"value": 1, "source": ""}}}, "published.sac of swing.yaml = {'value': 1"),
        ({"seeds": None}, "seeds of swing.yaml = None cannot be used"),
        ({"seeds": [-1]}, "seed_everything = -1: give a number from 0 to 4294967295"),
    ],
)
def test_bad_recipes_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(write_recipe(**changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config file gone.yaml cannot be read: No such file"):
        load_recipe(Path("gone.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_recipe(Path("list.yaml"))


@pytest.mark.parametrize(("key", "task"), [("data.env.env", "env"), ("data.env", "data.env"), ("data.envs", "")])
def test_labels_of_arms_and_what_is_published_of_them(key: str, task: str) -> None:
    names = ["Pendulum-v1", "CartPole-v1"]
    published = {f"sac {key}=CartPole-v1 model.gamma=0.9": {"value": 500, "source": "Table 3"}}
    recipe = load_recipe(write_recipe(grid={key: names, "model.gamma": [0.9]}, published=published))
    assert recipe.labels() == {
        arm: ("sac model.gamma=0.9", f"{task}={name}") if task else (arm, "")
        for name in names
        for arm in [f"sac {key}={name} model.gamma=0.9"]
    }
    assert recipe.published == {f"sac {key}=CartPole-v1 model.gamma=0.9": Published(500.0, "Table 3")}


def test_seeds_and_flags_as_words() -> None:
    assert read_seeds(3) == (0, 1, 2)
    settings = {"model": "SAC", "model.gamma": 0.5, "data.size": [1, 2], "trainer.logger": None, "model.x": True}
    assert flags(settings) == [
        "--model=SAC",
        "--model.gamma=0.5",
        "--data.size=[1, 2]",
        "--trainer.logger=null",
        "--model.x=true",
    ]


def test_shipped_recipes_say_what_the_papers_ask_for() -> None:
    recipes = {path.stem: load_recipe(path) for path in CONFIGS.glob("sweep/*.yaml")}
    names = {name: [arm.name for arm in recipe.arms] for name, recipe in recipes.items()}
    assert (
        names.items()
        >= {
            "preconditioning": ["sac_equal_data", "preconditioned_300", "preconditioned_1000"],
            "navigation": ["maml", "fomaml", "emaml", "sgmrl", "sgmrl_linearised"],
            "corners": ["promp", "promp_taypo2", "trpo_dice", "trpo_emaml", "trpo_fomaml", "trpo_maml"],
            "half_cheetah_direction": ["promp", "promp_taypo2", "maml", "sgmrl"],
            "half_cheetah_velocity_steps": ["maml_1_step", "maml_3_steps", "sgmrl_1_step", "sgmrl_3_steps"],
            "hyper_critics": [
                "mlp_standard",
                "q_d2rl",
                "sa_hyper",
                "sa_hyper_slower",
                "as_hyper",
                "resnet_features",
            ],
            "hyper_published": [*NAMES],
        }.items()
    )
    estimators = ["tmaml", "tmaml_per_task", "tmaml_meta", "dice", "lvc", "maml"]
    for name, (one, other) in {
        "tmaml_variance": ("navigation", "half_cheetah"),
        "tmaml_ppo": ("ant", "half_cheetah"),
    }.items():
        arms = [f"{env}_{each}" for env in (one, other) for each in estimators]
        assert [arm for arm in names[name] if not arm.endswith("_one_epoch")] == arms
    assert sum(arm.endswith("_one_epoch") for arm in names["tmaml_ppo"]) == 5  # all but that of MAML, which has one
    assert len(names["tmaml_families"]) == 11
    assert len(set(names["tmaml_families_released"]) & set(names["tmaml_families"])) == 6
    few = {name for name, recipe in recipes.items() if len(recipe.seeds) < 3}
    of_two = {"half_cheetah_velocity_steps", "hyper_learning_rates", "tmaml_families", "tmaml_families_released"}
    assert few == {*of_two, "tmaml_ppo", "inference_learning_rates"}
    assert recipes["half_cheetah_velocity_steps"].published.keys() == set(names["half_cheetah_velocity_steps"])
