"""One clear error for each kind of bad input, before anything is trained; and inputs of real life that just work."""

from __future__ import annotations

import pkgutil
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from meta_cases import quiet_trainer
from test_cli import CONFIGS, SMOKE, error_of, runs
from test_resume import make_sac

from lit_metarl import errors
from lit_metarl.__main__ import main
from lit_metarl.envs.gym import Gymnasium
from lit_metarl.settings import Seed, SeedError
from lit_metarl.tracking import connect

PROMP = [f"--config={CONFIGS / 'experiment' / 'half_cheetah_direction_promp.yaml'}"]
PRECONDITIONED = [f"--config={CONFIGS / 'experiment' / 'preconditioned_small_dmc_walker_walk.yaml'}"]
MOVED = """
model:
  init_args:
    objective:
      class_path: LogCosine
      init_args: {derivative: {class_path: lit_metarl.losses.tangent_kernel.Exact}}
"""
CALLBACKS = {
    "finder.yaml": ["lit_metarl.callbacks.RunCheckpoint", "lightning.pytorch.callbacks.LearningRateFinder"],
    "typo.yaml": ["RunChekpoint"],
    "own.yaml": ["lightning.pytorch.callbacks.LearningRateMonitor"],
}


@pytest.fixture
def files(tmp_path: Path) -> None:
    """What the flags below name."""
    Path("a_file").write_text("in the way")
    Path("latin.yaml").write_bytes("model: {gamma: 0.9}  # für".encode("latin-1"))
    Path("section.yaml").write_text("modle: {gamma: 0.9}")
    Path("moved.yaml").write_text(MOVED)
    Path("seed.yaml").write_text("seed_everything: -3")
    for name, classes in CALLBACKS.items():
        Path(name).write_text(yaml.safe_dump({"trainer": {"callbacks": [{"class_path": each} for each in classes]}}))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=SACC"], "model = SACC names no class. Did you mean SAC? Choose from … DiCEMAML, EMAML,"),
        (["--model.gama=3"], "model.gama: SAC takes no gama. Did you mean gamma? Choose from actor, critic,"),
        (["--model.actor_lr=abc"], "model(SAC).actor_lr: Expected a float. Got value: abc"),
        (["--model.actor_lr=-1"], "model.actor_lr = -1.0 cannot be used: it must be a positive number."),
        (["--model.actor.hiden=[3]"], "model.actor.hiden: TanhGaussianMLP takes no hiden. Did you mean hidden?"),
        (["--model=TD3", "--model.target_update_every=3"], "TD3 takes no target_update_every. Choose from actor,"),
        (["--data=ReplyData"], "data = ReplyData names no class. Did you mean ReplayDataModule? Choose from Replay"),
        (["--data.num_env=2"], "data.num_env: ReplayDataModule takes no num_env. Did you mean num_envs?"),
        (["--data.batch_size=9999"], "data.capacity = 2000 cannot be used: the replay must hold one minibatch"),
        (["--data.epoch_steps=7", "--data.num_envs=2"], "data.epoch_steps = 7 cannot be used"),
        (["--data.env=MuJuCo"], "data.env = MuJuCo names no class. Did you mean lit_metarl.envs.locomotion.MuJoCo?"),
        (["--data.env.env=Pendulm-v1"], "Gymnasium knows no environment 'Pendulm-v1'. Did you mean Pendulum-v1"),
        (["--data.env.env=CartPole-v1"], "discrete actions"),
        (
            ["--model=MAML", "--model.policy=lit_metarl.nn.GaussianMLP"],
            "model = 'MAML' cannot be used: ReplayDataModule feeds algorithms of single tasks, such as SAC",
        ),
        (["--trainer.max_epohcs=1"], "--trainer.max_epohcs=1 is not understood. Did you mean --trainer.max_epochs?"),
        (["--ckpt_pth=last"], "--ckpt_pth=last is not understood. Did you mean --ckpt_path?"),
        (["stray"], "stray is not understood."),
        (["--trainer.precision=16-mixed"], "trainer.precision = '16-mixed' cannot be used: float16 gradients"),
        (["--trainer.precision=64-true"], "trainer.precision = '64-true' cannot be used: experience is float32"),
        (["--trainer.precision=31"], "trainer.precision: choose one of 64, 32, 16,"),
        (["--trainer.accelerator=cpux"], "trainer: You selected an invalid accelerator name: `accelerator='cpux'`."),
        (["--trainer.max_steps=100"], "trainer.max_steps = 100 cannot be used: it counts optimizer steps"),
        (["--trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches = 2 cannot be used: gradients are"),
        (["--trainer.gradient_clip_val=1"], "trainer.gradient_clip_val = 1 cannot be used: gradients are set by hand"),
        (["--trainer.val_check_interval=0.5"], "trainer.val_check_interval = 0.5 cannot be used: an evaluation follow"),
        (["--trainer.limit_train_batches=0"], "trainer.limit_train_batches = 0 cannot be used: nothing would be"),
        (["--trainer.overfit_batches=1"], "trainer.overfit_batches = 1 cannot be used: experience is collected anew"),
        (["--trainer.barebones=true"], "trainer.barebones = True cannot be used: nothing would be logged or saved"),
        (["--trainer.enable_checkpointing=false"], "trainer.enable_checkpointing = False cannot be used"),
        (["--trainer.inference_mode=true"], "trainer.inference_mode = True cannot be used: adaptation at test time"),
        (["--trainer.log_every_n_steps=0"], "trainer.log_every_n_steps = 0 cannot be used"),
        (["--config=finder.yaml"], "trainer.callbacks = 'LearningRateFinder' cannot be used: gradients are set by"),
        (["--config=typo.yaml"], "trainer.callbacks = RunChekpoint names no class. Did you mean RunCheckpoint?"),
        (["--config=nowhere.yaml"], "config file nowhere.yaml cannot be read: No such file"),
        (["--config=~/nowhere.yaml"], f"config file {Path.home()}/nowhere.yaml cannot be read"),
        (["--config=latin.yaml"], "config file latin.yaml is no UTF-8 (byte 24): save it as UTF-8."),
        (["--config=section.yaml"], "modle is no section of a config. Did you mean model? Choose from seed_everything"),
        (["--config=seed.yaml"], "seed_everything = -3: give a number from 0 to 4294967295, or true to draw one"),
        (["--seed_everything=5000000000"], "seed_everything = 5000000000: give a number from 0 to 4294967295"),
        (["--seed_everything=false"], "seed_everything = false: give a number"),
        (["--ckpt_path=nowhere.ckpt"], "ckpt_path = nowhere.ckpt: there is no such file"),
        (["--ckpt_path=last"], "has a last.ckpt. Drop --ckpt_path to start a new run"),
        (["--trainer.logger.root=a_file"], "a_file"),
        (["--trainer.logger.rot=x"], "trainer.logger.rot: MLflowLogger takes no rot. Did you mean root?"),
        (["--trainer.logger.experiment_name="], "experiment_name is empty: give the experiment a name."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("files")
def test_bad_input_is_one_clear_error(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(["fit", *SMOKE, *flags], capsys)
    assert all(part in said for part in message.split(" … "))  # between: classes of other tests' users
    assert not list(Path(".").glob("mlruns/runs/*"))  # nothing was trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", *SMOKE], "train is no command. Did you mean fit? Choose from fit, validate, test, predict,"),
        (["tets"], "tets is no command. Did you mean test?"),
        (["fit"], "there is no model and no data: --config configs/experiment/quickstart.yaml, or another experiment."),
        (["fit", "--config"], "--config needs a file: --config configs/experiment/quickstart.yaml"),
        (
            ["fit", *PROMP, "--model.correction.doubly_robust=true"],
            "model.correction has no class yet. Name it first, --model.correction CLASS. Choose from CrossTask,",
        ),
        (
            ["fit", *PROMP, "--model.outer=PPPO"],
            "model.outer = PPPO names no class. Did you mean PPO? Choose from … PPO",
        ),
        (
            ["fit", *PRECONDITIONED, "--model.objective.derivative=lit_metarl.losses.tangent_kernel.JVP"],
            "lit_metarl.losses.tangent_kernel.JVP has moved: write lit_metarl.diagnostics.kernels.JVP.",
        ),
        (
            ["fit", *PRECONDITIONED, "--config=moved.yaml"],
            "lit_metarl.losses.tangent_kernel.Exact has moved: write lit_metarl.diagnostics.kernels.Exact.",
        ),
        (["fit", *PROMP, "--model.correction=lit_metarl.optim.SGMRLCorrection"], "SGMRLCorrection is four classes of"),
        (["fit", *PROMP, "--model.adapted=trunk"], "model.adapted is called model.adapted_parameters now."),
        (
            ["fit", *PRECONDITIONED, "--model.preconditioning_updates=3"],
            "model.preconditioning_updates is called data.warmup_updates now.",
        ),
        (["completion", "ksh"], "completion = 'ksh' cannot be used: choose one of bash, zsh, tcsh, fish, powershell."),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("files")
def test_what_is_no_command_or_no_experiment(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said, (start, *rest) = error_of(arguments, capsys), message.split(" … ")
    assert said.startswith(start)
    assert all(part in said for part in rest)


def test_what_has_moved_is_there() -> None:
    assert all(pkgutil.resolve_name(new) for new in errors.MOVED.values())
    for old in errors.MOVED:
        with pytest.raises((ImportError, AttributeError)):
            pkgutil.resolve_name(old)


def test_a_misspelt_metric_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=eval/retrun"]
    message = error_of(["fit", *SMOKE, *flags], capsys)
    assert message.startswith("Early stopping conditioned on metric `eval/retrun` which is not available.")
    assert "`eval/return`" in message


def test_callbacks_that_replace_ours_are_told_what_is_lost(caplog: pytest.LogCaptureFixture, files: None) -> None:
    assert main(["fit", *SMOKE, "--config=own.yaml", "--trainer.max_epochs=1"]) == 0
    assert "trainer.callbacks has no RunCheckpoint: nothing is saved" in caplog.text
    caplog.clear()
    assert main(["fit", *SMOKE, "--trainer.callbacks+=LearningRateMonitor", "--trainer.max_epochs=1"]) == 0
    assert "RunCheckpoint" not in caplog.text


def test_a_drawn_seed_is_used_everywhere_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["fit", *SMOKE, "--trainer.max_epochs=1", "--seed_everything=true"]) == 0
    (run,) = runs()
    data = connect("mlruns").get_run(run.name).data
    drawn = data.params["seed_everything"]
    assert data.tags["seed"] == data.params["data.seed"] == drawn
    assert f"-seed{drawn}-" in data.tags["mlflow.runName"]
    assert int(drawn) > 1
    assert Seed()("true") != Seed()(True)
    monkeypatch.setenv("LOCAL_RANK", "1")  # a process that the first one started is handed its seed
    monkeypatch.setenv("PL_GLOBAL_SEED", drawn)
    assert Seed()(True) == int(drawn)
    monkeypatch.delenv("PL_GLOBAL_SEED")
    with pytest.raises(SeedError, match="processes that a launcher starts cannot agree"):
        Seed()(True)


def test_training_runs_in_a_thread() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["fit", *SMOKE, "--trainer.max_epochs=1"])))
    thread.start()
    thread.join()
    assert codes == [0]
    (run,) = runs()
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 0
    assert connect("mlruns").get_run(run.name).info.status == "FINISHED"


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import lit_metarl

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    configs = tmp_path / "home" / "configs"
    shutil.copytree(CONFIGS, configs)
    flags = ["--config=~/configs/experiment/sac_small_pendulum.yaml", "--config=~/configs/overlay/smoke.yaml"]
    assert main(["fit", *flags, "--trainer.logger.root=~/runs", "--trainer.max_epochs=1"]) == 0
    (run,) = (tmp_path / "home" / "runs" / "runs").iterdir()
    assert main(["report", "--root=~/runs", "--json=~/table.json"]) == 0
    assert (tmp_path / "home" / "table.json").is_file()
    assert lit_metarl.load_policy(f"~/runs/runs/{run.name}/last.ckpt").sizes.obs == 3
    assert lit_metarl.load_policy(run.name, root="~/runs").sizes.obs == 3
    assert main(["test", *flags, "--trainer.logger.root=~/runs", f"--ckpt_path=~/runs/runs/{run.name}/last.ckpt"]) == 0
    assert not (tmp_path / "~").exists()


def test_nothing_that_others_deprecate_reaches_the_user() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["fit", *SMOKE, "--trainer.max_epochs=1"]) == 0
    found = [str(w.message) for w in caught if issubclass(w.category, DeprecationWarning | FutureWarning)]
    assert not found


def test_help_is_fast_and_light() -> None:
    code = (
        "import sys; from lit_metarl.__main__ import main; main(['--help']); "
        "assert not {'torch', 'lightning', 'mlflow', 'mujoco', 'numpy'} & sys.modules.keys(), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: lit-metarl" in done.stdout


def test_a_start_imports_only_what_it_needs_and_looks_for_garbage_later() -> None:
    """Parsing needs neither MLflow nor a simulator of others, and what was imported is not searched again."""
    code = (
        "import gc, sys; from lit_metarl.__main__ import main; code = main(['fit', '--config', 'absent.yaml']); "
        "heavy = {'mlflow', 'pandas', 'pyarrow', 'sqlalchemy', 'dm_control', 'gymnasium', 'imageio', 'sklearn'}; "
        "assert 'lit_metarl.cli' in sys.modules and not heavy & sys.modules.keys(), heavy & sys.modules.keys(); "
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "absent.yaml" in done.stderr


def test_our_options_come_first_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("fit", "test", "predict", "validate"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        order = ("--seed_everything", "--ckpt_path", "--model.help", "--data.help", "--trainer.accelerator")
        places = [text.index(f" {option} ", 120) for option in order]
        assert places == sorted(places)
        assert "last or best (of the newest run of this algorithm, environment and seed" in text
        assert "weights_only" not in text


def test_help_fits_every_code_page() -> None:
    code = "import sys; from lit_metarl.__main__ import main; sys.exit(main(['fit', '--model.help', 'SAC']))"
    env = {"PYTHONIOENCODING": "cp1252", "PATH": "", "HOME": str(Path.home())}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert b"--model.gamma" in done.stdout


def test_completion_says_which_shells_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: lit-metarl completion {bash,zsh,")


def test_the_completion_script_completes() -> None:
    # In a process of its own: it would follow the nested factories of other tests without end.
    made = subprocess.run(
        [sys.executable, "-m", "lit_metarl", "completion", "bash"], capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stderr) == (0, "")
    script = (
        made.stdout
        + """
compopt() { :; }
COMP_WORDS=(lit-metarl fit --ckpt); COMP_CWORD=2
_shtab_lit_metarl lit-metarl --ckpt fit
echo "${COMPREPLY[@]}"
"""
    )
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--ckpt_path"]


class Endless(gymnasium.Env):
    """Pays 1 a step and never ends an episode."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        return np.zeros(2, dtype=np.float32), 1.0, False, False, {}


def test_an_evaluation_ends_without_a_time_limit_and_says_so_before_training() -> None:
    module, datamodule = make_sac(Gymnasium("test_inputs.Endless"))
    trainer = quiet_trainer(max_epochs=1)
    with pytest.warns(UserWarning, match=r"Endless states no time limit: .* cut after 10,000 steps") as seen:
        trainer.fit(module, datamodule)
    assert "states no time limit" in str(seen[0].message)
    assert float(trainer.callback_metrics["eval/return"]) == 10_000.0
    assert float(trainer.callback_metrics["eval/episode_length"]) == 10_000.0
