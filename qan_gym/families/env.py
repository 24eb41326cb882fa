"""The environment of a family of tasks."""

from qan_gym.env import QanEnv
from qan_gym.families.task import Task


class LearningRateFamilyEnv(QanEnv):
    """Control the learning rate of a training that is another one in every episode.

    ## Description
    On one fixed task there is little to learn but a schedule. In `QanLR-Family-v0` every episode draws a task: a
    network, images, an optimizer, a batch size, a budget. An agent that has played many of them must do well on one
    that it has never seen.

    Networks: multilayer perceptrons of one to three layers of 4 to 64 (85 % of the tasks), small convolutional ones,
    `mnist-cnn`, `resnet-8`, small vision transformers. Images: the bundled digits at 7, 14 or 28 pixels a side, 2 to 10
    classes, 200 images to 400 per class, label noise of up to 40 % in half of the tasks, inputs of another scale and
    mean. Optimizers: SGD with momentum 0 to 0.95, AdamW with beta1 of 0.5 to 0.95, weight decay in half of the tasks.
    Batches of 4 to 128, loss scale 0.3 to 3, initial scale 0.5 to 2, budgets of 100 to 4,000 mini-batches (to 1,000 for
    networks that take milliseconds a step). `qan_gym.families.draw_task` draws them.

    Tasks have numbers. The two splits have none in common; `split="test"` is for judging only.

    ## Action Space
    `Box(-1, 1, (1,))`: action a multiplies the learning rate by 12**a (`learning_rate_factor`). A linear decay to 0
    (`schedule`) multiplies what the actions made of it. With `continuous=False, learning_rate_factors=[...]`, Discrete:
    one action per factor. The learning rate starts at 0.01 (SGD) or 0.003 (AdamW) and stays in [1e-6, 100].

    ## Observation Space
    `Box(-10, 10, (23,))`: the statistics of `qan_gym.core.statistics`, which any practitioner can measure of any
    training. With `context="observed"` the parameters of the task follow. Any list of registered features otherwise.

    ## Rewards
    0, and at the end -ln(validation loss / ln K), at least -ln 4 (`"final-log-loss"`); a run that diverges ends with
    -1.5. Other rewards as everywhere.

    ## Starting State
    A task and initial weights, from the seed of the episode.

    ## Episode End
    Truncated after 25 actions, which share the task's budget evenly. Terminated if the run has diverged.

    ## Information
    As `LearningRateEnv`, and `task`, a dict of the task's parameters as numbers. The validation loss is measured at the
    reset and at the end, and every `validate_every` mini-batches.

    ## Arguments
    `split` ("train" or "test"), `num_tasks` (how many different ones; None: 2^31) and `start_task` (the number of the
    first), as Procgen's levels; `networks` and `optimizers` (the kinds to draw from), `context` ("hidden" or
    "observed"), `task` (the only one: a `Task`, a dict of its fields, or its JSON), and the fields of `TaskConfig` that
    tasks do not say. `env.unwrapped.task` is the `Task` of the episode; pictures and text show it. CPU only.

    ## Version History
    v0: version 1 of the tasks.
    """

    @property
    def task(self) -> Task | None:
        """The `Task` of the episode; None before the first reset."""
        tasks: list[Task | None] = self.training.tasks  # type: ignore[attr-defined]
        return tasks[0]
