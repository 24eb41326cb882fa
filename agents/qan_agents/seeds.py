"""Seeds of evaluations, below UNSEEN_BELOW, and seeds of training and tuning, the others."""

UNSEEN_BELOW = 2**31
LARGEST_SEED = 2**32 - 1  # that NumPy's generators take


def training_seed(seed: int, number: int) -> int:
    """The seed of the training of that number, in [2**31, 2**32); never one of an evaluation.

    Args:
        seed: of the run or of a bench's preparation, at least 0.
        number: of the training in it, from 0.
    """
    import numpy as np  # here, so that the command line starts without it

    return UNSEEN_BELOW + int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) % UNSEEN_BELOW
