"""Controllers that need no preparation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qan_agents.bench.controllers import (
    Controller,
    Preparation,
    PreparedController,
    register_controller,
    require_settings,
)
from qan_agents.bench.trained_agents import agent_env_kwargs, check_env_settings
from qan_agents.bench.tuned_schedules import ABSOLUTE_ACTIONS, ScheduleController
from qan_agents.bench.tuning_task import Settings, TuningTask, task_config
from qan_agents.policies.class_rules import RULES, require_shares, rule_actions
from qan_gym.games import game_of
from qan_gym.optimizee.network import evaluate
from qan_gym.vector_env import QanVectorEnv

LOSS_LIMIT = 1e3  # nats, of a class in `LossProportional`
CLASS_WEIGHTS = 0.99  # of "class-weighted", see `TaskConfig.class_weights`


class RandomActions:
    """Actions drawn uniformly; in the mini-batch game the roulette of random classes."""

    def __init__(self, seed: int) -> None:
        """seed: of the actions."""
        self.seed = seed

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start`."""
        self.space = env.action_space
        self.space.seed(self.seed)

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[Any]:
        """See `Controller.act`."""
        return np.asarray(self.space.sample())


class ConstantAction:
    """The same action in every row at every step."""

    def __init__(self, action: Any) -> None:
        """action: of a single environment."""
        self.action = action

    def start(self, env: QanVectorEnv) -> Settings | None:
        """See `Controller.start`."""
        space = env.action_space
        self.actions = np.full(space.shape or (), self.action, space.dtype)
        return None

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[Any]:
        """See `Controller.act`."""
        return self.actions


class ShuffledSGD(ConstantAction):
    """Games that choose classes: the data in random order; the actions are ignored."""

    def __init__(self) -> None:
        """Nothing to choose."""
        super().__init__(0)

    def start(self, env: QanVectorEnv) -> Settings:
        """See `Controller.start`."""
        require_class_choice(env)
        super().start(env)
        return {"sampler": "shuffled"}


class ClassRule:
    """The mini-batch game with shares of the classes as its actions: one of `RULES`."""

    def __init__(self, name: str) -> None:
        """name: of the rule."""
        self.rule = RULES[name]

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start`."""
        require_shares(env.training)
        self.training = env.training

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[np.float32]:
        """See `Controller.act`."""
        return rule_actions(self.rule, self.training)


class ByActions:
    """One controller for classes as actions, another for their shares."""

    def __init__(self, classes: Controller, shares: Controller) -> None:
        """The two."""
        self.classes, self.shares = classes, shares

    def start(self, env: QanVectorEnv) -> Settings | None:
        """See `Controller.start`."""
        self.chosen = self.shares if env.config.continuous else self.classes
        return self.chosen.start(env)

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[Any]:
        """See `Controller.act`."""
        return self.chosen.act(observations, infos)


class ClassBalanced:
    """The mini-batch game: the classes in turn, so that the roulette holds all of them alike."""

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start`."""
        require_class_choice(env)
        self.rows, self.classes, self.next = env.num_envs, env.training.parts.n_classes, 0

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[np.int64]:
        """See `Controller.act`."""
        action, self.next = self.next, (self.next + 1) % self.classes
        return np.full(self.rows, action)


class LossProportional:
    """The mini-batch game: classes drawn with probability proportional to their loss on training images.

    The losses of the classes are measured every `EVERY` actions, on `IMAGES` images of each.
    """

    EVERY, IMAGES = 10, 20

    def __init__(self, seed: int) -> None:
        """seed: of the draws."""
        self.seed = seed

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start`."""
        require_class_choice(env)
        self.training, self.rng, self.step = env.training, np.random.default_rng(self.seed), 0
        labels = self.training.data.labels["train"]
        classes = range(self.training.parts.n_classes)
        self.images = [torch.nonzero(labels == one)[: self.IMAGES, 0] for one in classes]

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[np.int64]:
        """See `Controller.act`."""
        if self.step % self.EVERY == 0:
            losses = self._losses()  # (N, K)
            self.shares = losses / losses.sum(axis=1, keepdims=True)
        self.step += 1
        return np.array([self.rng.choice(len(share), p=share) for share in self.shares])

    def _losses(self) -> NDArray[np.float64]:
        training = self.training
        images, labels = training.data.images["train"], training.data.labels["train"]
        losses = []
        for some in self.images:
            batch = [(training.data.normalise(images[some]), labels[some])]
            losses.append(evaluate(training.network, training.run.params, batch)[0].double().nan_to_num(LOSS_LIMIT))
        by_class: NDArray[np.float64] = torch.stack(losses, dim=1).clamp(1e-6, LOSS_LIMIT).cpu().numpy()
        return by_class


def require_class_choice(env: QanVectorEnv) -> None:
    """Refuse a game whose actions do not choose the classes of the mini-batches.

    Raises:
        ValueError: it is such a game.
    """
    training = env.training
    if training.shuffled:
        raise ValueError(f"this controller chooses classes, and the actions of the game {env.config.game!r} do not")


# --- preparation ----------------------------------------------------------------------------------------------------


def _initial_rate(task: TuningTask, settings: Settings) -> PreparedController:
    """The task's own learning rate throughout: the original's baseline."""
    chosen = {"learning_rate": settings.get("learning_rate", task.config.learning_rate)}
    return PreparedController(ScheduleController("constant", [chosen]), ABSOLUTE_ACTIONS, chosen=chosen)


def _check_initial_rate(task: TuningTask, settings: Settings) -> None:
    require_settings(settings, ("learning_rate",))
    task_config(task.env, {**task.env_kwargs, **ABSOLUTE_ACTIONS, **settings})


def _class_weighted(task: TuningTask, settings: Settings) -> PreparedController:
    """Shuffled SGD whose loss weighs the classes by the inverse of the effective number of their images."""
    env_kwargs = {"class_weights": settings.get("class_weights", CLASS_WEIGHTS)}
    return PreparedController(ShuffledSGD(), env_kwargs, chosen=env_kwargs)


def _check_class_weighted(task: TuningTask, settings: Settings) -> None:
    require_settings(settings, ("class_weights",))
    task_config(task.env, {**task.env_kwargs, **settings})


def _schedule_of_agents(task: TuningTask, settings: Settings) -> PreparedController:
    """The base schedule under the actions of agents, which nobody plays: an agent before it has learned anything."""
    env_kwargs = agent_env_kwargs(task, settings.get("env", {}), continuous=False)
    config = task_config(task.env, {**task.env_kwargs, **env_kwargs})
    return PreparedController(ConstantAction(game_of(config).no_op(config)), env_kwargs)


def _check_schedule_of_agents(task: TuningTask, settings: Settings) -> None:
    require_settings(settings, ("env",))
    config = check_env_settings(task, settings.get("env", {}), continuous=False)
    if game_of(config).no_op(config) is None:
        raise ValueError(f"it plays the action that leaves things as they are: the game {config.game!r} has none")


register_controller("constant", _initial_rate, Preparation.NONE, _check_initial_rate)
register_controller("class-weighted", _class_weighted, Preparation.NONE, _check_class_weighted)
register_controller("base", _schedule_of_agents, Preparation.NONE, _check_schedule_of_agents)


def _register(name: str, make: Callable[[int], Controller]) -> None:
    """Register a controller without settings, made from the seed of its actions."""

    def prepare(task: TuningTask, settings: Settings) -> PreparedController:
        return PreparedController(make(task.seed))

    register_controller(name, prepare, Preparation.NONE, lambda _, settings: require_settings(settings, ()))


_register("random", RandomActions)
_register("shuffled", lambda _: ShuffledSGD())
_register("class-balanced", lambda _: ByActions(ClassBalanced(), ClassRule("class-balanced")))
_register("loss-proportional", lambda seed: ByActions(LossProportional(seed), ClassRule("loss-proportional")))
for _name in ("natural", "square-root", "deferred", "validation-proportional", "loss-reducing"):
    _register(_name, lambda _, name=_name: ClassRule(name))  # type: ignore[misc]
