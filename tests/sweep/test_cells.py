"""Cells and their keys: the same for what is the same run, another for every setting that matters."""

from __future__ import annotations

import csv
import pickle
import re
from collections import defaultdict
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache
from statistics import fmean
from typing import Any

import pytest
from sweep_cases import CONFIGS, PENDULUM, cells_of, resolver, write_recipe

from lit_metarl.config import load_config
from lit_metarl.envs.locomotion_tasks import Goal
from lit_metarl.nn import ActionDependentLinear
from lit_metarl.sweep.cells import KEY_TAG, key_of, make_cells
from lit_metarl.sweep.recipe import load_recipe
from lit_metarl.types import ConfigError

NAVIGATION = load_recipe(CONFIGS / "sweep" / "navigation.yaml")


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a config are that are no mapping or list."""
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [leaf for name, value in items for leaf in leaves(value, (*path, name))]
    return [path]


def changed(config: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    other = deepcopy(config)
    place = other
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = "another value"
    return other


def test_cuda_graphs_compute_the_same_run() -> None:
    config = resolver()(load_config(CONFIGS / "experiment" / "sac_small_pendulum.yaml"))
    assert config["model"]["init_args"]["cuda_graphs"] is False
    assert key_of(changed(config, ("model", "init_args", "cuda_graphs"))) == key_of(config)


def test_every_setting_that_matters_changes_the_key_and_no_other() -> None:
    config = resolver()(load_config(CONFIGS / "experiment" / "navigation_sgmrl.yaml"))
    paths = leaves(config)
    assert len(paths) > 60
    same = {".".join(map(str, path)) for path in paths if key_of(changed(config, path)) == key_of(config)}
    bar = {"trainer.callbacks.1.init_args.refresh_rate"}
    of_a_start = {"enable_progress_bar", "enable_model_summary", "default_root_dir", "profiler"}
    logger = {f"trainer.logger.init_args.{name}" for name in config["trainer"]["logger"]["init_args"]}
    checkpoint = {"trainer.callbacks.0.init_args.every_n_batches"}
    start = {"ckpt_path", "weights_only"} & config.keys()
    assert (
        same
        == bar
        | {f"trainer.{name}" for name in of_a_start}
        | logger
        | {"trainer.logger.class_path"}
        | checkpoint
        | start
    )


def test_the_key_does_not_depend_on_the_checkpoints_that_are_kept() -> None:
    keep = {"trainer.callbacks+": "lit_metarl.callbacks.KeepCheckpoints", "trainer.callbacks.every_n_epochs": 2}
    (plain,), (kept,) = cells_of(), cells_of(overrides=keep)
    assert kept.key == plain.key
    assert "KeepCheckpoints" in str(kept.config["trainer"]["callbacks"])


def test_an_option_of_a_later_version_leaves_the_key_as_it_is() -> None:
    """Whatever is at its default could be such an option, of any class in the config."""
    (cell,) = cells_of()
    config = deepcopy(cell.config)
    assert config["model"]["init_args"].pop("gamma") == 0.99
    assert config["model"]["init_args"].pop("cuda_graphs") is False  # of the base class
    assert config["model"]["init_args"]["actor"]["init_args"].pop("hidden") == [256, 256]  # a tuple
    assert config["data"]["init_args"]["env"]["init_args"].pop("kwargs") == {}  # of a factory
    assert config["data"]["init_args"].pop("capacity") == 1_000_000
    assert config["trainer"].pop("check_val_every_n_epoch") == 1
    assert key_of(config) == cell.key
    config["model"]["init_args"]["gamma"] = 0.9
    assert key_of(config) != cell.key

    monitor = {"trainer.callbacks+": "lit_metarl.callbacks.GradientMonitor", "trainer.callbacks.resampling.tasks": 7}
    (cell,) = cells_of(overrides=monitor)
    config = deepcopy(cell.config)
    (resampling,) = (
        each["init_args"]["resampling"]
        for each in config["trainer"]["callbacks"]
        if each["class_path"].endswith("GradientMonitor")
    )
    assert resampling.pop("outer_trajectories") is None  # of a dataclass that is written without its class
    assert key_of(config) == cell.key
    resampling["tasks"] = 8
    assert key_of(config) != cell.key


def test_the_key_does_not_depend_on_order_or_on_who_says_a_default() -> None:
    (plain,) = cells_of()
    (spelt,) = cells_of(overrides={"model.gamma": 0.99, "trainer.check_val_every_n_epoch": 1})
    (turned,) = cells_of(overrides={"trainer.check_val_every_n_epoch": 1, "model.gamma": 0.99})
    (elsewhere,) = cells_of(more=("--trainer.logger.root=elsewhere",))
    assert plain.config["model"]["init_args"]["gamma"] == 0.99
    assert {cell.key for cell in (spelt, turned, elsewhere)} == {plain.key}
    assert key_of(dict(reversed(plain.config.items()))) == plain.key
    assert elsewhere.file("log").as_posix() == f"elsewhere/sweeps/swing/sac-seed0-{plain.key}.log"


def test_cells_are_arms_times_grid_times_seeds_a_seed_after_the_other() -> None:
    cells = cells_of(seeds=[4, 2], grid={"model.gamma": [0.9, 0.95], "data.batch_size": [8]})
    assert [str(cell) for cell in cells] == [
        f"sac model.gamma={gamma} data.batch_size=8 seed {seed}" for seed in (4, 2) for gamma in (0.9, 0.95)
    ]
    assert len({cell.key for cell in cells}) == 4
    first = cells[0]
    assert first.config["model"]["init_args"]["gamma"] == 0.9
    assert first.config["seed_everything"] == 4
    assert first.config["trainer"]["logger"]["init_args"] == {
        "root": "mlruns",
        "experiment_name": "swing",
        "run_name": "sac model.gamma=0.9 data.batch_size=8 seed 4",
        "run_id": "checkpoint",
        "tags": {"recipe": "swing", "arm": "sac model.gamma=0.9 data.batch_size=8", KEY_TAG: first.key},
        "artifacts": ["swing.yaml"],
        "log_model": True,
    }
    assert first.evaluations == 6
    assert pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize("seed", [0, 2])
def test_a_cell_is_trained_as_its_config_says(seed: int) -> None:
    (cell,) = cells_of(seeds=[seed])
    assert cell.config["seed_everything"] == seed
    again = resolver()(cell.config)
    assert again == cell.config
    assert key_of(again) == cell.key


def test_later_settings_win() -> None:
    recipe = write_recipe(
        experiments={"a": {"config": [PENDULUM], "overrides": {"trainer.max_epochs": 7, "model.gamma": 0.7}}},
        overrides={"trainer.max_epochs": 8, "model.gamma": 0.8, "data.batch_size": 8},
        grid={"data.eval_episodes": [5]},
        seeds=2,
    )
    overlay = {"trainer": {"max_epochs": 1}, "data": {"init_args": {"eval_episodes": 1, "capacity": 100}}}
    cells = make_cells(load_recipe(recipe), resolver(), [overlay], ["--data.capacity=200"], [9])
    (config,) = [cell.config for cell in cells]
    data = config["data"]["init_args"]
    assert config["trainer"]["max_epochs"] == 1
    assert config["model"]["init_args"]["gamma"] == 0.7
    assert (data["batch_size"], data["eval_episodes"], data["capacity"]) == (8, 5, 200)
    assert config["seed_everything"] == 9


def test_one_run_is_one_cell() -> None:
    with pytest.raises(ConfigError, match=r"swing.yaml: sac model.gamma=0.9 seed 0 and sac .* are the same run"):
        cells_of(grid={"model.gamma": [0.9, 9e-1]})


def test_a_grid_of_whole_classes_has_files_of_usable_names() -> None:
    critics = [{"class_path": "lit_metarl.nn.D2RLCritic", "init_args": {"hidden": [n] * 64}} for n in (128, 129)]
    one, other = cells_of(grid={"model.critic": critics})
    for cell in (one, other):
        assert len(cell.arm) > 255
        cell.file("lock").parent.mkdir(parents=True, exist_ok=True)
        cell.file("lock").touch(exist_ok=False)


def test_runs_that_would_not_be_recorded_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer.logger = False cannot be used: a sweep reads in the store"):
        cells_of(more=("--trainer.logger=false",))


def test_only_arms_that_are_named_become_cells() -> None:
    def made(*only: str) -> list[str]:
        return [cell.arm for cell in make_cells(NAVIGATION, resolver(), seeds=[0], only=only)]

    assert made("sgmrl*", "maml") == [arm for arm in made() if arm in ("sgmrl", "sgmrl_linearised", "maml")]
    with pytest.raises(
        ConfigError, match=r"--arm = 'MAML' cannot be used: the arms of .*navigation.yaml are maml, fomaml, "
    ):
        made("maml", "MAML")
    critics = load_recipe(CONFIGS / "sweep" / "hyper_critics.yaml")
    hopper = make_cells(critics, resolver(), seeds=[0], only=["*hopper"])
    assert {cell.config["data"]["init_args"]["env"]["init_args"]["robot"] for cell in hopper} == {"hopper"}
    assert len(hopper) == len(critics.arms)


def test_every_arm_can_be_named_as_it_is_shown() -> None:
    """Brackets of a list in the grid are letters, not a set of them."""
    recipe = load_recipe(CONFIGS / "sweep" / "inference_half_cheetah.yaml")
    for name in recipe.labels():
        assert "[" in name
        assert [cell.arm for cell in make_cells(recipe, resolver(), seeds=[0], only=[name])] == [name]


def test_unknown_settings_are_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cells_of(grid={"model.gama": [0.9]})
    assert "lit-metarl: error: model.gama: SAC takes no gama. Did you mean gamma?" in capsys.readouterr().err


def test_shipped_arms_differ_only_where_their_recipe_says() -> None:
    cells = {cell.arm: cell.config for cell in make_cells(NAVIGATION, resolver(), seeds=[0])}
    assert {config["trainer"]["max_epochs"] for config in cells.values()} == {30}
    data = [config["data"] for config in cells.values()]
    assert all(each == data[0] for each in data)
    corrections = {
        cells[arm]["model"]["init_args"]["correction"]["class_path"] for arm in ("sgmrl", "sgmrl_linearised")
    }
    assert {name.rpartition(".")[2] for name in corrections} == {"LeaveOneOut", "LinearisedLeaveOneOut"}


@pytest.mark.parametrize(
    ("name", "steps"), [("half_cheetah_direction", 16_000_000), ("half_cheetah_velocity_steps", 38_400_000)]
)
def test_shipped_arms_have_equal_steps_and_evaluations(name: str, steps: int) -> None:
    found = set()
    for cell in make_cells(load_recipe(CONFIGS / "sweep" / f"{name}.yaml"), resolver(), seeds=[0]):
        init, epochs = cell.config["data"]["init_args"], cell.config["trainer"]["max_epochs"]
        rounds = init["adaptation_steps"] + 1
        horizon = init["env"]["init_args"]["max_episode_steps"]
        iteration = init["num_tasks"] * init["trajectories"] * rounds * horizon
        found.add((epochs * init["epoch_iterations"] * iteration, cell.evaluations))
    assert len(found) == 1
    assert found.pop()[0] == steps


def test_arms_of_preconditioning_have_equal_data() -> None:
    for cell in make_cells(load_recipe(CONFIGS / "sweep" / "preconditioning.yaml"), resolver(), seeds=[0]):
        data, epochs = cell.config["data"]["init_args"], cell.config["trainer"]["max_epochs"]
        random_steps = data["warmup_steps"] + data.get("warmup_updates", 0)
        assert random_steps == 6000
        # The first of 20 epochs is 1,000 meta-updates; 300 are the first part of 19.
        assert data["warmup_steps"] + 1000 * epochs in (25_000, 24_700)


SETTINGS = ("hyper_learning_rates", "hyper_initialisations", "hyper_temperature")  # recipes without a look at gradients
COMPARISONS = ("hyper_critics", "hyper_walker2d", "hyper_published", "td3_hyper_critics", "td3_hyper_published")


@pytest.mark.parametrize("name", [*SETTINGS, *COMPARISONS])
def test_arms_of_critics_differ_in_the_critic_and_its_step_size_alone(name: str) -> None:
    recipe, rest, critics = load_recipe(CONFIGS / "sweep" / f"{name}.yaml"), defaultdict(set), set()
    if "data.env.robot" in recipe.grid:
        recipe = replace(recipe, grid={})
    for cell in make_cells(recipe, resolver(), seeds=[0]):
        config = deepcopy(cell.config)
        critic, rate = (config["model"]["init_args"].pop(key) for key in ("critic", "critic_lr"))
        hyper = critic["class_path"].endswith(".HyperCritic")
        assert hyper is (re.search("hyper|released", cell.arm.partition(" ")[0]) is not None)
        if name in ("hyper_critics", "hyper_walker2d", "hyper_temperature", "hyper_initialisations"):
            arm = cell.arm.partition(" ")[0]
            chosen_for = "sa_hyper" if name == "hyper_initialisations" and hyper else arm.removesuffix("_slower")
            best = best_step_sizes()[chosen_for]
            assert rate == (0.1 * best if arm.endswith("_slower") else best)
        elif name != "hyper_learning_rates":
            assert rate == (5e-5 if hyper and "published" in name else 3e-4)
        critics.add((str(critic), cell.arm.partition(" ")[0].endswith("_slower")))
        rest[cell.arm.partition(" ")[2]].add(key_of(config))
        watched = [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"]]
        assert ("CriticGradientMonitor" in watched) is (name in COMPARISONS)
        if hyper and name.startswith("td3"):
            assert critic["init_args"]["initialisation"]["init_args"]["primary_gain"] == 0.5
    assert len(critics) == len(recipe.arms)
    assert {len(keys) for keys in rest.values()} == {1}


@cache
def best_step_sizes() -> dict[str, float]:
    """The critics' step size with the highest mean return over all evaluations, by arm of hyper_learning_rates."""
    returns = defaultdict(list)
    with (CONFIGS / "sweep" / "hyper_learning_rates.csv").open() as file:
        for row in csv.DictReader(file):
            if row["metric"] == "eval/return":
                arm, _, rate = row["arm"].partition(" model.critic_lr=")
                returns[arm, float(rate)].append(float(row["value"]))
    means = sorted((fmean(values), arm, rate) for (arm, rate), values in returns.items())
    return {arm: rate for _, arm, rate in means}  # of an arm's, the last one stays


def test_arms_of_a_preconditioned_hypernetwork_have_equal_data() -> None:
    recipe = load_recipe(CONFIGS / "sweep" / "preconditioned_hyper.yaml")
    first, second = (cell.config for cell in make_cells(recipe, resolver(), seeds=[0]))
    for config in (first, second):
        data = config["data"]["init_args"]
        assert data["warmup_steps"] + data["warmup_updates"] == 5300
    assert first["model"]["init_args"]["critic"] == second["model"]["init_args"]["critic"]


@pytest.mark.parametrize("name", ["tmaml_families", "tmaml_ppo", "tmaml_variance"])
def test_arms_of_taming_maml_have_the_settings_of_their_class(name: str) -> None:
    """A class that follows another in a recipe keeps the other's settings of the same name, which none may here."""
    recipe = load_recipe(CONFIGS / "sweep" / f"{name}.yaml")
    few = tuple(
        arm for arm in recipe.arms if arm.name in ("ant_goal", "ant_tmaml_per_task", "navigation_tmaml_per_task")
    )
    (cell,) = [
        c for c in make_cells(replace(recipe, arms=few), resolver(), seeds=[0]) if "ActionDependent" in str(c.config)
    ]
    baseline = cell.config["model"]["init_args"]["baseline"]
    fresh = ActionDependentLinear(interactions=name == "tmaml_variance")
    assert baseline == {"class_path": "lit_metarl.nn.ActionDependentLinear", "init_args": asdict(fresh)}
    if name == "tmaml_families":
        env = cell.config["data"]["init_args"]["env"]
        assert asdict(Goal(**env["init_args"])) == asdict(Goal())
    monitored = any(each["class_path"].endswith("GradientMonitor") for each in cell.config["trainer"]["callbacks"])
    assert monitored is (name == "tmaml_variance")


@pytest.mark.parametrize("name", ["inference_point_robots", "inference_half_cheetah"])
def test_arms_of_inference_differ_in_networks_and_in_what_is_told(name: str) -> None:
    recipe, rest = load_recipe(CONFIGS / "sweep" / f"{name}.yaml"), defaultdict(set)
    for cell in make_cells(recipe, resolver(), seeds=[0]):
        config = deepcopy(cell.config)
        model, data = config["model"]["init_args"], config["data"]["init_args"]
        encoder, told = model.pop("encoder"), data.pop("oracle_context")
        networks = {model.pop(key)["class_path"].rpartition(".")[2].startswith("Hyper") for key in ("actor", "critic")}
        assert (encoder is None) is told is ("oracle" in cell.arm)
        assert networks == {not re.search(r"mlp|(?<!hyper_)pearl", cell.arm)}
        rest[str(data["env"])].add(key_of(config))
    assert {len(keys) for keys in rest.values()} == {1}
    assert len(rest) == 2


def test_arms_of_context_maml_differ_in_the_policy_its_step_and_what_is_told() -> None:
    steps, rest = defaultdict(set), defaultdict(set)
    for cell in make_cells(load_recipe(CONFIGS / "sweep" / "context_maml.yaml"), resolver(), seeds=[0]):
        config = deepcopy(cell.config)
        model, data = config["model"]["init_args"], config["data"]["init_args"]
        assert ("Hyper" in model.pop("policy")["class_path"]) is ("hyper" in cell.arm)
        assert data.pop("oracle_context") is ("vanilla" not in cell.arm)
        task = data["env"]["class_path"].rpartition(".")[2]
        steps[cell.arm.partition("_")[0], task].add(model.pop("inner_lr"))
        rest[task].add(key_of(config))
    assert {task: len(keys) for task, keys in rest.items()} == {"Velocity": 1, "Direction": 1}
    for task in rest:
        assert [len(steps[policy, task]) for policy in ("vanilla", "context", "hyper")] == [1, 3, 4]
