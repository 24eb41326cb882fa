"""Training runs: their folder, training, evaluation, pictures, pages and videos, and the experiments of the paper."""
