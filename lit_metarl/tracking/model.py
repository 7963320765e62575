"""The policy of a run as an MLflow model: logged by its run, and loaded by :func:`mlflow.pyfunc.load_model`.

A model is the recipe and the weights of the policy, as :func:`lit_metarl.load_policy` reads them, and nothing else of
the checkpoint. Loading it needs this package, torch and NumPy, and no simulator.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_metarl.checkpoint import read_checkpoint, write_checkpoint
from lit_metarl.policy import TrainedPolicy, load_policy
from lit_metarl.types import Sizes

NAME = "policy"
_REQUIREMENTS = ("lit_metarl", "torch", "numpy")


class PolicyModel:
    """A policy as MLflow calls models.

    Args:
        policy: of a checkpoint.
    """

    def __init__(self, policy: TrainedPolicy) -> None:
        self.policy = policy

    def predict(self, data: Any, params: Any = None) -> np.ndarray:
        """Deterministic actions ``[E, A]`` (``[E]`` if discrete) for ``data``, as the model's signature has it.

        Args:
            data: observations ``[E, O]`` float32; for a policy that is told its task
                ``{"obs": [E, O], "context": [1, C]}``.
            params: not used; MLflow hands it over.
        """
        if isinstance(data, Mapping):
            return self.policy(data["obs"], np.asarray(data["context"])[0])
        return self.policy(data)


def _load_pyfunc(path: str) -> PolicyModel:
    """The model in the file ``path``; MLflow calls it by this name."""
    return PolicyModel(load_policy(path))


def log_policy(client: Any, run_id: str, checkpoint: Path, tags: Mapping[str, object]) -> str:
    """Log the policy of ``checkpoint`` as the model of a run and return the model's id.

    A run has one model: a run that went on after it was logged gets its content replaced.

    Args:
        client: ``MlflowClient`` of the store.
        run_id: of the run, in that store.
        checkpoint: file of the run.
        tags: of the model, beside its environment steps and the evaluation at the checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        MlflowException: the store refuses the model.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    state = read_checkpoint(checkpoint)["algorithm"]
    steps, score = state["counters"]["env_steps"], state["latest"].get("eval/return")
    tags = {key: str(value) for key, value in {**tags, "env_steps": steps, "eval_return": score}.items()}
    run = client.get_run(run_id)
    found = client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'")
    if found:
        model = found[0]
        client.set_logged_model_tags(model.model_id, tags)
    else:
        model = client.create_logged_model(run.info.experiment_id, NAME, source_run_id=run_id, tags=tags)
    description = Model(
        artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
    )
    with tempfile.TemporaryDirectory() as folder:
        _save(state["policy"], Path(folder), description)
        client.log_model_artifacts(model.model_id, str(Path(folder) / NAME))
    client.finalize_logged_model(model.model_id, "READY")
    if model.model_id not in [output.model_id for output in run.outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=steps)])
    return str(model.model_id)


def _save(policy: Mapping[str, Any], folder: Path, description: Any) -> None:
    """Write the model to ``folder/policy``; requirements are stated, as looking for them takes MLflow half a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow, on type hints of its own and on examples, as models are often tables
        import mlflow.pyfunc

        file = folder / "policy.ckpt"
        write_checkpoint({"algorithm": {"policy": dict(policy)}}, file)
        mlflow.pyfunc.save_model(
            str(folder / NAME),
            loader_module=__name__,
            data_path=str(file),
            signature=_signature(Sizes(**policy["sizes"])),
            pip_requirements=[_requirement(package) for package in _REQUIREMENTS],
            mlflow_model=description,
        )


def _signature(sizes: Sizes) -> Any:
    """Tensors in and out, ``-1`` for E."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    obs = [np.dtype("float32"), (-1, sizes.obs)]
    told = [TensorSpec(*obs, "obs"), TensorSpec(np.dtype("float32"), (1, sizes.context), "context")]
    action = ("int64", (-1,)) if sizes.num_actions is not None else ("float32", (-1, sizes.action))
    inputs = told if sizes.context else [TensorSpec(*obs)]
    return ModelSignature(Schema(inputs), Schema([TensorSpec(np.dtype(action[0]), action[1])]))


def _requirement(package: str) -> str:
    try:
        version = importlib.metadata.version(package).partition("+")[0]  # without the label of a build
    except importlib.metadata.PackageNotFoundError:
        return package
    return f"{package}=={version}"
