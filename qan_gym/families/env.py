"""The environments of families of tasks."""

from typing import Any

from qan_gym.env import QanEnv
from qan_gym.families.record import TaskRecord
from qan_gym.families.source import TaskSource


class FamilyEnv(QanEnv):
    """An environment whose episodes draw their tasks; the families' own pages are those of its subclasses."""

    @property
    def task(self) -> TaskRecord | None:
        """The record of the task of the episode; None before the first reset."""
        tasks: list[TaskRecord | None] = self.training.tasks  # type: ignore[attr-defined]
        return tasks[0]

    @property
    def source(self) -> TaskSource[Any]:
        """Where the tasks come from."""
        source: TaskSource[Any] = self.training.source  # type: ignore[attr-defined]
        return source


class LongTailEnv(FamilyEnv):
    """Choose the classes of the mini-batches of a training with rare and noisy classes, another one in every episode.

    ## Description
    Where every image is seen once per epoch, choosing mini-batches gains nothing. In `QanMinibatch-LongTail-v0` classes
    are drawn *with replacement*: one that is exhausted begins anew, in a new order, and the budget counts mini-batches.
    In every episode other classes are rare and other classes are noisy, so that no fixed preference for a class can
    win; validation and test images stay balanced and clean.

    Every episode draws a task from the bundled digits: an imbalance (images of the largest class over those of the
    smallest, the others exponentially between them) of 1 to 100, 100 to 400 images of the largest class, up to 5 noisy
    classes of which 0 to 60 % of the images show any digit, and which digit has which label. Networks: multilayer
    perceptrons of one or two layers of 16 to 64 on images of 14 x 14 (97 % of the tasks), and `mnist-cnn`. SGD with or
    without momentum 0.9, a linear or one-cycle schedule of a learning rate within a factor of 2 of one that is good on
    the average, batches of 16 to 128, 80 to 480 mini-batches. `qan_gym.families.long_tail.draw_task` draws them.

    Tasks have numbers. The two splits have none in common; `split="test"` is for judging only.

    ## Action Space
    `Discrete(10)`: a class. The last ten actions are the roulette: each has a tenth of the next mini-batches. At first
    they stand for all classes alike. With `continuous=True`, `Box(-1, 1, (10,))`: the shares of the classes in the next
    mini-batches are softmax(3 action), so that two classes differ by a factor of at most e^6 = 403, and 0 are all
    classes alike. A mini-batch holds each class in proportion to its share, rounded up or down at random.

    With `game="class-mixture"`, for agents that learn from few trainings, `Discrete(3)`: 0 raises, 1 lowers and 2 keeps
    the share of the rare classes, over four mixtures, in which classes are drawn in proportion to their size to the
    power 1, where an episode begins, 1/2, 0 or -1/2.

    ## Observation Space
    `Box(-10, 10, (55,))`, the observation `"classes"`. Ten numbers each, one per class: the running mean of its
    training loss, its validation loss, its share of the mini-batches of the last action, its size, and how often its
    images were seen. Then the share of the budget used, the learning rate, budget, batch size and epochs. The
    validation losses are measured after every action on 20 images of each class (`class_validation_images`); these
    passes take as long as one to four mini-batches. With `context="observed"` the parameters of the task follow. Any
    list of registered features otherwise.

    ## Rewards
    0, and at the end -ln(validation loss / ln K), at least -ln 4 (`"final-log-loss"`); a run that diverges ends with
    -1.5. With `reward="validation-loss", validate_every=1`, the drop of ln(validation loss) after every action. Others
    as everywhere.

    ## Starting State
    A task and initial weights, from the seed of the episode. `reset(options={"sampler": "shuffled"})` plays an episode
    of shuffled SGD, in which actions do nothing: the baseline.

    ## Episode End
    Truncated after 40 actions, which share the task's budget evenly. Terminated if the run has diverged.

    ## Information
    As `LearningRateEnv`, and `task`, a dict of the task's parameters as numbers. The validation loss is measured at the
    reset and at the end, and every `validate_every` mini-batches.

    ## Arguments
    `split`, `num_tasks`, `start_task`, `context` and `task` as `LearningRateFamilyEnv`; `networks` (`"mlp"`,
    `"mnist-cnn"`); `imbalance`, `label_noise` (of the noisy classes) and `noisy_classes` (how many), each a number or
    two, which it is drawn between; `batches_per_action`, for fewer and longer actions where all episodes have one task
    (`num_tasks=1` or `task`); and the fields of `TaskConfig` that tasks do not say, `class_weights` of the training
    loss among them. `env.unwrapped.task` is the record of the episode; pictures and text show it. CPU only.

    ## Version History
    v0: version 1 of the tasks.
    """


class LearningRateFamilyEnv(FamilyEnv):
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
    one action per factor. The learning rate starts at 0.001 (SGD) or 0.003 (AdamW) and stays in [1e-6, 100].

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
    first), as Procgen's levels; `networks` and `optimizers` (the kinds to draw from, or a dict of their shares;
    `networks="mlp-norm"`: perceptrons with layer normalisation, which are not among the usual tasks), `batches` and
    `train_size` (numbers, or between which they are drawn: longer tasks, or more images, than the usual ones),
    `context` ("hidden" or "observed"), `task` (the only one: a `Task`, a dict of its fields, or its JSON),
    `batches_per_action` of an only task, and the fields of `TaskConfig` that tasks do not say. `env.unwrapped.task` is
    the `Task` of the episode; pictures and text show it. CPU only.

    ## Version History
    v0: version 1 of the tasks.
    """
