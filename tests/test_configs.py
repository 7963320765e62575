"""Every shipped yaml parses, and every experiment runs two iterations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from lit_metarl.cli import run
from lit_metarl.config import compose_arguments, load_config, merge
from lit_metarl.nn.recipe import from_recipe
from lit_metarl.optim import PPO, TRPO
from lit_metarl.tracking import connect
from lit_metarl.types import ConfigError, Sizes

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = sorted(CONFIGS.glob("experiment/*.yaml"))
FILES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name != "sweep"]  # these are recipes


OVERLAYS = {"ReplayDataModule": "smoke", "TrajectoryDataModule": "smoke_meta", "TaskReplayDataModule": "smoke_pearl"}
LOSSES = {"smoke": "train/critic_loss", "smoke_meta": "train/objective", "smoke_pearl": "train/critic_loss"}


def overlay_of(path: Path) -> str:
    return OVERLAYS[load_config(path)["data"]["class_path"].rpartition(".")[2]]


def test_there_are_experiments() -> None:
    names = {path.stem for path in EXPERIMENTS}
    assert {"quickstart", "sac_dmc_cheetah_run", "sac_small_dmc_cartpole_swingup"} <= names


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_runs_two_iterations(path: Path, tmp_path: Path) -> None:
    overlay = overlay_of(path)
    file = CONFIGS / "overlay" / f"{overlay}.yaml"
    run(["fit", f"--config={path}", "--config", str(file), "--trainer.accelerator=cpu"])
    (directory,) = (tmp_path / "mlruns" / "runs").iterdir()
    checkpoint = torch.load(directory / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1
    metrics = connect("mlruns").get_run(directory.name)
    assert metrics.info.status == "FINISHED"
    loss = LOSSES[overlay]
    if path.stem.startswith("preconditioned"):
        loss = "train/meta_objective"  # two iterations are in its first phase
    assert {"eval/return", loss} <= metrics.data.metrics.keys()
    assert checkpoint["algorithm"]["counters"]["env_steps"] > 0


def test_an_oracle_needs_no_encoder(tmp_path: Path) -> None:
    files = "experiment/point_robot_pearl", "overlay/smoke_pearl", "overlay/oracle_context"
    run(["fit", *(f"--config={CONFIGS / file}.yaml" for file in files), "--trainer.accelerator=cpu"])
    (directory,) = (tmp_path / "mlruns" / "runs").iterdir()
    saved = torch.load(directory / "last.ckpt", weights_only=True)
    assert not any(name.startswith("encoder") for name in saved["state_dict"])
    assert saved["algorithm"]["policy"]["sizes"]["context"] == 2


@pytest.mark.parametrize(
    ("file", "narrowed", "maker", "inputs"),
    [
        # of the published widths, which take a quarter of a minute
        ("algorithm/hyper_pearl", ("actor", "critic", "value"), "value.hypernetwork", 2),
        ("overlay/hyper_pearl_combine", (), "critic.hypernetwork", 2 + 5),  # of observation and z
        ("overlay/hyper_pearl_reverse", (), "actor.weight_maker", 2),  # of the observation
    ],
)
def test_forms_of_hyper_pearl_train(
    file: str, narrowed: tuple[str, ...], maker: str, inputs: int, tmp_path: Path
) -> None:
    files = "experiment/quickstart_inference", "overlay/smoke_pearl", file
    configs = [f"--config={CONFIGS / each}.yaml" for each in files]
    widths = [f"--model.{network}.widths=[16]" for network in narrowed]
    run(["fit", *configs, "--trainer.accelerator=cpu", *widths])
    (directory,) = (tmp_path / "mlruns" / "runs").iterdir()
    saved = torch.load(directory / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 1
    assert saved["state_dict"][f"{maker}.primary.0.weight"].shape[-2] == inputs


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_file_is_a_config(path: Path) -> None:
    content = load_config(path)
    assert content
    assert content.keys() <= {"seed_everything", "trainer", "model", "data"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_shared_settings_of_an_algorithm_reach_it(path: Path) -> None:
    """Nothing that an included ``algorithm/`` file sets is lost, unless the experiment or its critic sets it itself."""
    composed, content = load_config(path)["model"]["init_args"], yaml.safe_load(path.read_text())
    own = set(content.get("model", {}).get("init_args", {}))
    files = {name: load_config(path.parent / name).get("model", {}).get("init_args", {}) for name in content["include"]}
    own |= {key for name, settings in files.items() if "/critic/" in name for key in settings}
    for name, shared in files.items():
        if "/algorithm/" in name:
            kept = {key: value for key, value in shared.items() if key not in own}
            assert kept
            assert kept.items() <= composed.items()


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "navigation_sgmrl",  # the SG-MRL code base
            {"num_tasks": 20, "trajectories": 20, "adaptation_steps": 1, "hidden": [100, 100], "inner_lr": 0.1}
            | {"gamma": 0.99, "gae_lambda": 0.997, "lr": 1e-3},
        ),
        (
            "half_cheetah_direction_promp",  # the ProMP code base
            {"num_tasks": 40, "trajectories": 20, "adaptation_steps": 1, "hidden": [64, 64], "inner_lr": 0.1}
            | {"gamma": 0.99, "gae_lambda": 1.0, "action_scale": 0.1},
        ),
        ("ant_goal_promp", {"num_tasks": 40, "adaptation_steps": 2, "max_episode_steps": 200, "inner_lr": 0.1}),
        ("corners_promp_taypo2", {"num_tasks": 40, "trajectories": 20, "adaptation_steps": 3, "hidden": [64, 64]}),
        (
            "walker2d_parameters_promp",
            {"inner_lr": 0.05, "adaptive_kl": True, "kl_penalty": 1e-3, "kl_target": 1e-2, "epochs": 3}
            | {"max_episode_steps": 200},
        ),
        ("sac_dmc_cheetah_run", {"hidden": [1024, 1024], "critic_lr": 1e-4, "batch_size": 1024, "polyak": 0.005}),
        (
            "td3_half_cheetah",  # github.com/sfujim/TD3
            {"hidden": [256, 256], "actor_lr": 3e-4, "critic_lr": 3e-4, "batch_size": 256, "warmup_steps": 25_000}
            | {"gamma": 0.99, "polyak": 0.005, "policy_delay": 2, "exploration_noise": 0.1, "target_noise": 0.2}
            | {"target_noise_clip": 0.5, "capacity": 1_000_000},
        ),
        (
            "half_cheetah_velocity_pearl",  # github.com/katerakelly/oyster
            {"train_tasks": 100, "num_tasks": 5, "meta_batch": 16, "batch_size": 256, "context_size": 100}
            | {"initial_steps": 2000, "prior_steps": 400, "posterior_steps": 0, "extra_steps": 600, "latent": 5}
            | {"updates_per_iteration": 2000, "reward_scale": 5.0, "kl_weight": 0.1, "max_episode_steps": 200},
        ),
        (
            "half_cheetah_velocity_context_maml",  # the code of Sarafian et al. 2021
            {"num_tasks": 40, "trajectories": 20, "train_tasks": 100, "inner_lr": 0.1, "hidden": [100, 100]}
            | {"gamma": 0.95, "gae_lambda": 1.0, "max_kl": 0.01, "backtrack_steps": 20, "oracle_context": True},
        ),
        ("half_cheetah_velocity_hyper_maml", {"inner_lr": 5e-5, "max_episode_steps": 200, "setup": "hyperl"}),
        (
            "sparse_point_robot_pearl",
            {"num_tasks": 10, "prior_steps": 100, "posterior_steps": 900, "extra_steps": 0, "context_size": 1024}
            | {"gamma": 0.9, "reward_scale": 100.0, "kl_weight": 1.0, "trajectories": 5, "shaped_rewards": True},
        ),
        ("point_robot_pearl", {"train_tasks": 80, "context_size": 64, "updates_per_iteration": 1000, "gamma": 0.99}),
        ("td3_hyperl_half_cheetah", {"batch_size": 100, "warmup_steps": 1000, "policy_delay": 2}),
    ],
)
def test_published_settings(name: str, published: dict[str, object]) -> None:
    config, found = load_config(CONFIGS / "experiment" / f"{name}.yaml"), {}
    levels = [config["model"], config["data"]]
    while levels:
        level = levels.pop()
        found.update(level)
        levels.extend(value for value in level.values() if isinstance(value, dict))
    assert published.items() <= found.items()


def test_published_size_of_hyper_pearl() -> None:
    """On top of PEARL's experiment its file has the networks of Sarafian et al. 2021."""
    files = "experiment/half_cheetah_velocity_pearl", "algorithm/hyper_pearl"
    settings = merge(*(load_config(CONFIGS / f"{file}.yaml") for file in files))["model"]["init_args"]
    rates = [settings[key] for key in ("actor_lr", "critic_lr", "value_lr", "encoder_lr", "reward_scale")]
    assert rates == [1e-4, 5e-5, 5e-5, 3e-4, 5.0]
    sizes = Sizes(20, 6, None, 5)
    for name, action, meta, base in (("actor", 6, 5, 20), ("critic", 6, 20, 6 + 5), ("value", 0, 20, 5)):
        network = from_recipe({"init_args": {}} | settings[name]).build(sizes._replace(action=action)).hypernetwork
        assert network.primary[0].weight.shape[1:] == (meta, 256)
        assert network.heads.weight.shape[1] == 1024
        assert network.layers["0"][:2] == (base, 256)


def test_published_defaults_of_outer_updates() -> None:
    assert PPO() == PPO(lr=1e-3, clip=0.3, epochs=5, kl_penalty=5e-4, adaptive_kl=False, kl_target=1e-2)
    assert TRPO() == TRPO(max_kl=0.01, cg_iterations=10, damping=1e-5, backtrack_ratio=0.8, backtrack_steps=15)


@pytest.mark.parametrize("size", ["", "_small"])
def test_both_arms_of_preconditioning_have_equal_data(size: str) -> None:
    arms = list(CONFIGS.glob(f"experiment/preconditioned{size}_dmc_*.yaml"))
    assert len(arms) == {"": 1, "_small": 2}[size]
    for treated in arms:
        control = CONFIGS / "experiment" / treated.name.replace("preconditioned", "sac")
        first, second = load_config(treated), load_config(control)
        second = merge(second, load_config(CONFIGS / "overlay" / f"equal_data{size}.yaml"))
        settings = first["model"]["init_args"]
        data = first["data"]["init_args"]
        random_steps = data["warmup_steps"] + data.pop("warmup_updates")
        del settings["meta_lr"]
        assert random_steps == second["data"]["init_args"].pop("warmup_steps")
        del first["data"]["init_args"]["warmup_steps"]
        assert first["data"] == second["data"]
        assert settings == second["model"]["init_args"]


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def test_includes_are_relative_and_merge_in_order(tmp_path: Path) -> None:
    write(tmp_path / "a" / "one.yaml", {"x": {"p": 1, "q": 1}, "list": [1, 2]})
    write(tmp_path / "a" / "two.yaml", {"include": ["one.yaml"], "x": {"q": 2}, "list": [3]})
    top = write(tmp_path / "b" / "top.yaml", {"include": ["../a/two.yaml"], "x": {"r": 3}})
    assert load_config(top) == {"x": {"p": 1, "q": 2, "r": 3}, "list": [3]}


def test_another_class_takes_no_argument_of_the_old_one() -> None:
    base = {"model": {"class_path": "A", "init_args": {"lr": 1, "tau": 2}}}
    assert merge(base, {"model": {"class_path": "B", "init_args": {"lr": 3}}})["model"]["init_args"] == {"lr": 3}
    assert merge(base, {"model": {"init_args": {"lr": 3}}})["model"]["init_args"] == {"lr": 3, "tau": 2}
    shared = {"model": {"init_args": {"lr": 1, "tau": 2}}}  # for whatever class a later file names
    named = merge(shared, {"model": {"class_path": "B", "init_args": {"lr": 3}}})["model"]
    assert named == {"class_path": "B", "init_args": {"lr": 3, "tau": 2}}
    assert base["model"]["init_args"] == {"lr": 1, "tau": 2}  # not changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"include": ["nowhere.yaml"]}, r"nowhere.yaml \(included by .*top.yaml\) cannot be read"),
        ({"include": ["top.yaml"]}, "is a circle"),
        ({"include": "top.yaml"}, "must be a list of files"),
        ([1, 2], "must be a mapping"),
    ],
)
def test_bad_files_are_named(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "top.yaml", content))


def test_broken_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1, 2")
    with pytest.raises(ConfigError, match=r"broken\.yaml is no valid yaml"):
        load_config(tmp_path / "broken.yaml")


def test_flags_after_configs_win(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.yaml", {"a": 1, "b": 1}), write(tmp_path / "2.yaml", {"b": 2})
    arguments = compose_arguments(["fit", "--a", "9", "--config", str(one), f"-c={two}"])
    assert arguments[:2] == ["fit", "--config"]
    assert yaml.safe_load(arguments[2]) == {"a": 1, "b": 2}
    assert arguments[3:] == ["--a", "9"]
