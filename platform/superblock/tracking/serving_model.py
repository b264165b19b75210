"""What `mlflow models serve` and `mlflow.pyfunc.load_model` run: MLflow copies this file into every registered model.

    superblock must be installed where it runs. A request is a list of prompts, an answer the list of their texts:
    curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d '{"inputs": ["def main("]}'

How long and how varied the texts are says the model's own configuration; `load_model(..., model_config={...})` changes it.
"""

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext


class TextModel(PythonModel):
    """Continues texts with the checkpoint among the model's artifacts."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the weights, when MLflow has laid out the files."""
        from pathlib import Path

        from superblock.generation.session import load_checkpoint

        self.session = load_checkpoint(Path(context.artifacts["checkpoint"]))
        self.sampling = dict(context.model_config)

    def predict(self, context: PythonModelContext, model_input: list[str]) -> list[str]:  # type: ignore[override]
        """Each prompt with its continuation; equal requests have equal answers."""
        return [prompt + self.session.complete(prompt, **self.sampling) for prompt in model_input]


mlflow.models.set_model(TextModel())
