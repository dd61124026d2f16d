"""Models in MLflow: a classifier as an exported graph, which is loaded without pickle and without Counterpoise."""

from __future__ import annotations

import copy
import tempfile
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from mlflow import MlflowClient


def log_model(
    client: MlflowClient, experiment_id: str, run_id: str, name: str, module: torch.nn.Module, example: np.ndarray
) -> str:
    """Log a classifier as a model of a run, and return its URI.

    Args:
        client: The client of the run's server.
        experiment_id: The run's experiment.
        run_id: The run.
        name: Name of the model.
        module: The classifier, which is not changed.
        example: Inputs of the module, two or more.
    """
    import mlflow.pytorch
    import torch
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model, infer_signature

    module = copy.deepcopy(module).cpu().eval()  # an exported graph cannot change its device or its mode
    with torch.no_grad():
        output = module(torch.from_numpy(example)).numpy()
    versions = [f"{package.__name__}=={package.__version__.partition('+')[0]}" for package in (torch, np)]
    with tempfile.TemporaryDirectory() as folder:
        mlflow.pytorch.save_model(
            module,
            f"{folder}/model",
            mlflow_model=Model(run_id=run_id),
            signature=infer_signature(example, output),
            input_example=example,
            serialization_format="pt2",
            pip_requirements=versions,  # inferring them would load the model in another process
        )
        # mlflow.pytorch.log_model would log to the process's active experiment, which is not the run's.
        model = client.create_logged_model(experiment_id, name, source_run_id=run_id)
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model.model_uri
