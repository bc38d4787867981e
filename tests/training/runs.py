"""What a run has left, and runs in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import yaml

from training.config import Config

ROOT = Path(__file__).parents[2]


def weights(config: Config, name: str = "last.keras") -> list[np.ndarray]:
    """All values in a checkpoint: of the model, and of its optimizer."""
    model = keras.models.load_model(config.folder / name)
    # Keras gives the random generators of a loaded model new states.
    kept = [value for value in model.variables if "seed_generator" not in value.path]
    return [np.array(value) for value in (*kept, *model.optimizer.variables)]


def start(settings: dict, folder: Path, environment: dict | None = None) -> subprocess.Popen:
    """Starts the script in a process of its own."""
    path = folder / f"{Path(settings['run']).name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return subprocess.Popen(
        [sys.executable, "-m", "training.train", "--config", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
