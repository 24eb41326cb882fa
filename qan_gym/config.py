"""The configuration of a task: one frozen record of everything that defines a game."""

from dataclasses import dataclass

from qan_gym.schedules import SCHEDULES
from qan_gym.utils.validation import (
    check_settings,
    either,
    exactly,
    flag,
    integer,
    list_of,
    number,
    one_of,
    optional,
    registered,
    setting,
    text,
)

FILTER_REGRESSION = "filter-regression"


@dataclass(frozen=True)
class TaskConfig:
    """Everything that defines a game. Each field is a keyword argument of every environment id.

    Raises:
        ValueError: a value is out of its range; the message names the field, the range and the value.
    """

    game: str = setting("learning-rate", text(), "what an action controls: the name of a registered game")

    # The training run.
    dataset: str = setting("mnist", text(), "a registered name, or the path of an .npz file")
    train_size: int | None = setting(
        None,
        optional(integer(at_least=1)),
        "only so many images of the training split: the first ones, of each class where the data are sorted by class; "
        "None: all of them",
    )
    resolution: int | None = setting(
        None, optional(integer(at_least=2)), "pixels a side, each the mean of a square of the data set's; None: all"
    )
    classes: tuple[int, ...] | None = setting(
        None,
        optional(list_of(integer(at_least=0), "labels")),
        "the labels that are kept, which become 0, 1, ...; None: all",
    )
    data_seed: int | None = setting(
        None,
        optional(integer(at_least=0)),
        "of the choice of train_size images and of the label noise; None: the first images",
    )
    label_noise: float | tuple[float, ...] = setting(
        0.0,
        either(number(at_least=0, at_most=1), list_of(number(at_least=0, at_most=1), "shares")),
        "share of the training labels that are drawn anew, of any class; or a share for each class, of the images with "
        "that label",
    )
    imbalance: float = setting(
        1.0,
        number(at_least=1),
        "images of the largest class of the training split over those of the smallest, the others between them; "
        "data_seed says which are rare; 1: as the data are",
    )
    input_scale: float = setting(1.0, number(above=0), "multiplies the normalised images")
    input_centre: float = setting(1.0, number(at_least=0, at_most=1), "share of the mean that normalising takes off")
    preprocess: str = setting(
        "normalise",
        one_of("normalise", "whiten"),
        "'normalise' each channel, or 'whiten': global contrast normalisation and ZCA, as the original",
    )
    augment: str | None = setting(
        None,
        one_of(None, "zero", "reflect"),
        "random flip, and random crop after such a padding by 4 pixels; None: neither",
    )
    network: str = setting("mnist-cnn", text(), "a registered name")
    initial_scale: float = setting(1.0, number(above=0), "multiplies the initial weights, not the biases")
    optimizer: str = setting(
        "sgd", text(), "a registered name; 'adamw' brings its own learning rates, momentum and weight decay"
    )
    learning_rate_min: float = setting(0.005, number(above=0), "the least learning rate that an action can set")
    learning_rate_max: float = setting(
        1.0, number(at_least="learning_rate_min"), "the largest learning rate that an action can set"
    )
    learning_rate: float = setting(
        0.05, number(at_least="learning_rate_min", at_most="learning_rate_max"), "at the start of an episode"
    )
    momentum: float = setting(0.0, number(at_least=0, below=1), "of SGD; of AdamW, beta1")
    nesterov: bool = setting(False, flag(), "Nesterov's momentum; SGD only")
    weight_decay: float = setting(0.0, number(at_least=0), "SGD: added to the gradient; AdamW: decoupled from it")
    loss_scale: float = setting(
        1.0, number(above=0), "multiplies the training loss and its gradient; not the validation and test losses"
    )
    class_weights: float = setting(
        0.0,
        number(at_least=0, at_most=1),
        "beta of the weights of the classes in the training loss, by the inverse of the effective number of their "
        "images, (1 - beta^n) / (1 - beta); 0: all alike, 1: by the inverse of their sizes",
    )
    batch_size: int = setting(10, integer(at_least=1), "images of a mini-batch")
    epochs: int = setting(20, integer(at_least=1), "the budget of an episode")
    batches: int | None = setting(
        None, optional(integer(at_least=1)), "the budget in mini-batches, in the place of epochs; None: epochs"
    )
    precision: str = setting(
        "float32", one_of("float32", "tf32", "bf16"), "of the network's arithmetic; 'tf32' on CUDA only"
    )

    # The actions.
    batches_per_action: int = setting(1, integer(at_least=1), "mini-batches of an action")
    continuous: bool = setting(
        False,
        flag(),
        "actions in Box(-1, 1): of the learning rate, or, in the mini-batch game, a logit for each class",
    )
    replacement: bool = setting(
        False,
        flag(),
        "mini-batch game: classes are drawn with replacement; one that is exhausted begins anew, in a new order",
    )
    action_scale: str = setting(
        "additive",
        one_of("additive", "multiplicative", "absolute"),
        "of raise and lower: 'additive' (the paper) or 'multiplicative'; 'absolute' where continuous: the action is "
        "the learning rate itself, -1 the least, 1 the largest, in the logarithm",
    )
    schedule: str = setting(
        "constant",
        registered(SCHEDULES),
        "the base schedule, which multiplies the learning rate that the actions have set",
    )
    learning_rate_step: float = setting(0.005, number(above=0), "of one additive action")
    learning_rate_factor: float | None = setting(
        None,
        optional(number(above=1)),
        "of one multiplicative action, and of a continuous action of 1; None: 1.25, and 2",
    )
    learning_rate_factors: tuple[float, ...] | None = setting(
        None,
        optional(list_of(number(above=0), "numbers above 0")),
        "learning-rate game: one discrete action per factor of the learning rate; None: raise, lower, keep",
    )

    # What the agent is shown and paid for.
    observation: str | tuple[str, ...] = setting(
        "screen",
        either(one_of("screen", "filters", "statistics", "classes"), list_of(text(), "names of features")),
        "'screen': filters and score line; 'filters': the paper's; 'statistics': what can be measured of any training; "
        "'classes': how each class does; or a list of registered features, one number each, or one for each class",
    )
    reward: str = setting("log-loss", text(), "a registered name")
    divergence_penalty: float = setting(10.0, number(at_least=0), "what diverging costs, in the place of the reward")
    target_loss: float | None = setting(
        None, optional(number(above=0)), "running mean of the training loss at which the episode is won; None: none"
    )
    validate_every: int | None = setting(
        None, optional(integer(at_least=1)), "mini-batches from one validation to the next; None: an epoch"
    )
    class_validation_images: int = setting(
        20,
        integer(at_least=1),
        "validation images of each class that its loss is measured on after every action, where the observation has "
        "it; at most those there are",
    )
    early_stopping: int | None = setting(
        None, optional(integer(at_least=1)), "epochs without a lower validation loss that end the episode; None: none"
    )

    # The help of a reference network.
    meta_momentum: float | str | None = setting(
        0.001,
        optional(either(number(at_least=0, at_most=1), exactly(FILTER_REGRESSION))),
        "the pull c towards the reference, w <- w + c (w* - w) after each update; or filter regression, or None",
    )
    pull_epochs: int | None = setting(
        6, optional(integer(at_least=0)), "epochs during which the pull acts (the paper: 0-5); None: 1/c mini-batches"
    )
    reference: str | None = setting(
        "pretrained",
        optional(text()),
        "'pretrained', 'previous' (the last episode's final weights), the path of a .safetensors file, or None",
    )
    distillation: float = setting(
        0.0, number(at_least=0), "weight of the cross-entropy with the reference's predictions as soft targets"
    )

    def __post_init__(self) -> None:
        """Check every field and what goes together; lists become tuples."""
        check_settings(self)
        for name in ("observation", "classes", "learning_rate_factors", "label_noise"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        factors = self.learning_rate_factors
        if factors is not None and len(factors) < 2:
            raise ValueError(f"learning_rate_factors must be 2 or more, one per discrete action, not {list(factors)}")
        if factors is not None and self.continuous:
            raise ValueError("learning_rate_factors are discrete actions: set continuous=False, or leave them out")
        if self.action_scale == "absolute" and not self.continuous:
            raise ValueError("action_scale='absolute' needs continuous=True: the action is the learning rate itself")
        if self.distillation > 0 and self.reference is None:
            raise ValueError("distillation needs soft targets: give a reference, or leave distillation at 0")
