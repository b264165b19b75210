"""The model that a run trains, as MLflow knows it: what results are ranked by, each with the data set it was measured on.

Its files stay in the run's folder; MLflow calls such a model external. A promoted model is registered with its files
beside it (`registry`).
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from superblock.tracking.spool import Event

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_TYPE = "training run"
MEASURED_ON = {"val/": "validation", "final/val_": "validation", "test/": "test", "language/": "test"}
"""Beginning of a metric, and the role of the data set behind it."""
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")
"""What may go better the next time; anything else a server says is an answer, such as not knowing models."""
_FORBIDDEN = re.compile(r"[/:.%\"']")


def dataset_name(event: Event) -> tuple[str, str]:
    """Name and digest of a data set in its role. Equal name and digest are one data set to MLflow, which then keeps the
    first role alone."""
    return f"{event.data['name']} {event.data['context']}"[:500], event.data["digest"][:36]


def measured_on(metric: str, datasets: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
    """The data set that a metric was measured on, by the roles of the run's data sets; None if that is not known."""
    role = next((role for beginning, role in MEASURED_ON.items() if metric.startswith(beginning)), None)
    return datasets.get(role) if role else None


def find_or_make(client: "MlflowClient", experiment_id: str, run_id: str, identity: Mapping[str, Any]) -> str:
    """The id of the run's model, which an earlier delivery may have made.

    Raises:
        mlflow.exceptions.MlflowException: if the store does not answer, or knows no models.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

    name = _FORBIDDEN.sub("-", str(identity["name"]))
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'")
    if found:
        return str(found[0].model_id)
    tags = {
        key: str(identity[key]) for key in ("stage", "scale", "arm", "seed", "suite") if identity.get(key) is not None
    }
    model = client.create_logged_model(
        experiment_id, name, run_id, tags | {MLFLOW_MODEL_IS_EXTERNAL: "true"}, model_type=MODEL_TYPE
    )
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def end(client: "MlflowClient", model_id: str, status: str) -> None:
    """Marks the model as whole if its run finished; else as not."""
    from mlflow.entities.logged_model_status import LoggedModelStatus

    client.finalize_logged_model(
        model_id, LoggedModelStatus.READY if status == "FINISHED" else LoggedModelStatus.FAILED
    )
