"""Training runs: the run folder, training, evaluation, plots, the page of a run, videos, the experiments of the paper."""
