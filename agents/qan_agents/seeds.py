"""Which seeds are for what: those below UNSEEN_BELOW are judged on, the others are trained and tuned on."""

import numpy as np

UNSEEN_BELOW = 2**31


def training_seed(seed: int, number: int) -> int:
    """The seed of the training of that number, in [2**31, 2**32); never one that is judged on.

    Args:
        seed: of the run or the preparation, at least 0.
        number: of the training in it, from 0.
    """
    return UNSEEN_BELOW + int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) % UNSEEN_BELOW
