"""A training from its configuration alone."""

from qan_gym.config import TaskConfig
from qan_gym.core.components import build_components
from qan_gym.core.references import resolve_reference
from qan_gym.core.training import Training


def make_training(config: TaskConfig, num_runs: int = 1, device: str = "cpu", engine: str = "auto") -> Training:
    """Build the parts of a task, find or train its reference, and allocate N runs.

    Raises:
        ValueError, FileNotFoundError: see `build_components`, `resolve_reference` and `Training`.
    """
    parts = build_components(config, device, engine)
    return Training(parts, resolve_reference(parts), num_runs)
