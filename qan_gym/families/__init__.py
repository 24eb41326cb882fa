"""Families of tasks: a task is drawn anew for every episode, from one of two splits that have none in common."""

from qan_gym.families.learning_rate import NETWORKS, OPTIMIZERS, draw_task
from qan_gym.families.task import CONTEXT, DECISIONS, Task

__all__ = ["CONTEXT", "DECISIONS", "NETWORKS", "OPTIMIZERS", "Task", "draw_task"]
