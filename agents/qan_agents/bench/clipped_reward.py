"""The reward of the original (arXiv:1606.01467), to measure what it costs; importing this registers it."""

from qan_gym import register_reward
from qan_gym.core.reward import inverse_loss
from qan_gym.core.run_state import RunState
from qan_gym.utils.arrays import Array


def clipped_inverse_loss(run: RunState) -> Array:
    """(N,): 1 / loss, at most 1, so that all losses below about 1 have the same reward."""
    return run.xp.minimum(inverse_loss(run), 1.0)


register_reward("clipped-inverse-loss", clipped_inverse_loss)
