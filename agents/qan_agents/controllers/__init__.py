"""Controllers of the learning rate that were trained on a family of tasks, and the schedules they are judged by.

`LearnedLR`, a controller in a training loop of yours, needs PyTorch, NumPy and safetensors alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qan_agents.controllers.learned_lr import LearnedLR

__all__ = ["LearnedLR"]


def __getattr__(name: str) -> Any:
    if name == "LearnedLR":  # imported when it is asked for, because PyTorch is
        from qan_agents.controllers.learned_lr import LearnedLR

        return LearnedLR
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
