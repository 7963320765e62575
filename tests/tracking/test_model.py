"""The policy as an MLflow model: one a run, of its best checkpoint, loaded where there is no simulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import LightningModule, Trainer

import lit_metarl
from lit_metarl.__main__ import main
from lit_metarl.algorithms import MAML, SAC
from lit_metarl.nn import TanhGaussianMLP
from lit_metarl.tracking import MLflowLogger, connect
from lit_metarl.tracking.model import log_policy

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = ("experiment/sac_small_pendulum.yaml", "overlay/smoke.yaml")
FIT = ["fit", *(f"--config={CONFIGS / file}" for file in FILES), "--trainer.accelerator=cpu"]
OBS = [[0.1, -0.2, 0.3], [1.0, 0.0, 2.0]]
LOAD = """
import json, sys
blocked = ("mujoco", "dm_control", "gymnasium", "lightning")
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, NotInstalled())
import numpy as np
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
assert not {"mujoco", "dm_control", "gymnasium", "lightning"} & sys.modules.keys()
print(json.dumps(model.predict(np.array(json.loads(sys.argv[2]), dtype=np.float32)).tolist()))
"""


def models(root: str = "mlruns") -> list[Any]:
    client = connect(root)
    return list(client.search_logged_models([e.experiment_id for e in client.search_experiments()]))


def run_of(root: str = "mlruns") -> Path:
    (run,) = (Path(root) / "runs").iterdir()
    return run


def test_a_run_has_one_model_that_loads_without_a_simulator() -> None:
    assert main([*FIT, "--trainer.max_epochs=1"]) == 0
    (first,) = models()
    assert main([*FIT, "--ckpt_path=last", "--trainer.max_epochs=6"]) == 0
    (model,) = models()
    run, client = run_of(), connect("mlruns")
    outputs = client.get_run(run.name).outputs.model_outputs
    assert [output.model_id for output in outputs] == [first.model_id] == [model.model_id]
    assert str(model.status) == "READY"
    best = {point.value: point.step for point in client.get_metric_history(run.name, "eval/return")}
    assert int(model.tags["env_steps"]) == best[max(best)]
    assert float(model.tags["eval_return"]) == max(best)
    assert model.tags["algorithm"] == "SAC"

    folder = Path(client.list_logged_model_artifacts(model.model_id) and model.artifact_location)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 400_000
    uri = {"MLFLOW_TRACKING_URI": client.tracking_uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    package = {"PYTHONPATH": str(Path(lit_metarl.__file__).parents[1])}
    command = [sys.executable, "-c", LOAD, f"models:/{model.model_id}", json.dumps(OBS)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | uri | package)
    assert done.returncode == 0, done.stderr
    actions = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_array_equal(np.array(actions, np.float32), lit_metarl.load_policy(run / "best.ckpt")(OBS))


def test_the_final_return_is_that_of_the_last_tenth_and_logged_once() -> None:
    logger = MLflowLogger()
    for step in range(1, 21):
        logger.log_metrics(
            {"eval/return": float(step), "eval/out_of_distribution/return": -1.0, "eval/return_std": 0.0}, 100 * step
        )
    logger.log_final_returns()
    logger.flush()
    metrics = connect("mlruns").get_run(logger.run_id).data.metrics
    final = {name: value for name, value in metrics.items() if name.startswith("final/")}
    assert final == {"final/return": 19.5, "final/out_of_distribution/return": -1.0}

    assert main([*FIT, "--trainer.logger.root=a", "--trainer.max_epochs=1"]) == 0
    assert main([*FIT, "--trainer.logger.root=a", "--ckpt_path=last"]) == 0
    client, run = connect("a"), run_of("a").name
    (point,) = client.get_metric_history(run, "final/return")
    last = client.get_metric_history(run, "eval/return")[-1]
    assert (point.value, point.step) == (last.value, last.step)


def test_one_flag_turns_it_off() -> None:
    assert main([*FIT, "--trainer.max_epochs=1", "--trainer.logger.log_model=false"]) == 0
    assert models() == []


def test_what_cannot_be_logged_loses_no_run(caplog: pytest.LogCaptureFixture) -> None:
    Path("mlruns/artifacts/lit_metarl").mkdir(parents=True)
    Path("mlruns/artifacts/lit_metarl/models").write_text("in the way")
    assert main([*FIT, "--trainer.max_epochs=1"]) == 0
    assert "the policy is not logged as a model (" in caplog.text
    assert connect("mlruns").get_run(run_of().name).info.status == "FINISHED"
    Path("mlruns/artifacts/lit_metarl/models").unlink()
    assert main([*FIT, "--ckpt_path=last"]) == 0  # goes on, and this time logs it
    (model,) = models()
    assert str(model.status) == "READY"


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: SAC(3, 2, actor=TanhGaussianMLP((4,))), np.ones((5, 3), np.float32)),
        (lambda: MAML(3, 1, num_actions=4), np.ones((5, 3), np.float32)),
        (
            lambda: MAML(3, 2, context_dim=2),
            {"obs": np.ones((5, 3), np.float32), "context": np.array([[1, -1]], np.float32)},
        ),
    ],
    ids=["continuous", "discrete", "told its task"],
)
def test_every_kind_of_policy_is_a_model(make: Callable[[], LightningModule], data: Any, tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    trainer.strategy.connect(make())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    logger = MLflowLogger()
    log_policy(logger.experiment, str(logger.run_id), tmp_path / "a.ckpt", {})
    import mlflow.pyfunc

    (model,) = models()
    loaded = mlflow.pyfunc.load_model(model.artifact_location)
    policy = lit_metarl.load_policy(tmp_path / "a.ckpt")
    told = isinstance(data, dict)
    expected = policy(data["obs"], data["context"][0]) if told else policy(data)
    actions = loaded.predict(data)
    np.testing.assert_array_equal(actions, expected)
    (output,) = loaded.metadata.signature.outputs
    assert (actions.dtype, actions.shape[1:]) == (output.type, output.shape[1:])
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        loaded.predict({**data, "obs": np.ones((5, 4), np.float32)} if told else np.ones((5, 4), np.float32))
