"""What plays episodes by a name at the command line: a run's agent, a controller, a fixed policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from numpy.typing import NDArray

from qan_agents.controllers.controller import Controller
from qan_agents.controllers.shipped import controller_file, shipped_files
from qan_agents.env_ids import require_settings, task_of
from qan_agents.experiments.run_folder import CONFIG, Run
from qan_agents.experiments.train import load_agent
from qan_agents.policies.fixed import Policy, fixed_env_kwargs, fixed_policies, make_policy
from qan_gym.families.factory import family_arguments
from qan_gym.utils.counts import counted
from qan_gym.utils.names import instead_of

DEFAULT_ENV = "QanLR-MNIST5k-v1"
SUFFIX = ".safetensors"  # of a controller's file


@dataclass(frozen=True)
class Player:
    """A policy, and the environment that it plays.

    Attributes:
        name: of the policy, in words.
        policy: it.
        env, env_kwargs: arguments of `gym.make`.
        history: frames of an observation that it takes.
    """

    name: str
    policy: Policy
    env: str
    env_kwargs: dict[str, Any]
    history: int = 1


class ControllerPolicy:
    """A controller in a single environment."""

    def __init__(self, controller: Controller) -> None:
        """controller: its settings are those of the environment."""
        self.controller = controller

    def start(self, env: gym.Env[Any, Any], seed: int) -> None:
        """See `Policy.start`."""
        self.choose = self.controller.player(1)

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`."""
        return self.choose(observation)[0]  # the one frame is the one row


def player_of(what: str, env: str | None, env_kwargs: dict[str, Any]) -> Player:
    """What plays.

    Args:
        what: the folder of a run, the file of a controller, or the name of one that ships or of a fixed policy.
        env: the id that it plays; None: that of the run, the family, or DEFAULT_ENV.
        env_kwargs: keyword arguments of the environment in the place of those of the run, or of the id.

    Raises:
        ValueError: there is no such thing, it is damaged, or it cannot play the environment.
        FileNotFoundError: there is no such file.
    """
    path = Path(what).expanduser()
    if (path / CONFIG).exists():
        return _of_run(Run(path), env, env_kwargs)
    if path.suffix == SUFFIX or what in shipped_files():
        return _of_controller(controller_file(path), env, env_kwargs)
    if what in fixed_policies():
        env = env or DEFAULT_ENV
        own = {**env_kwargs, **fixed_env_kwargs(what, task_of(env, env_kwargs))}
        _require_playable(what, env, own)
        return Player(what, make_policy(what), env, own)
    raise ValueError(
        f"{what} is neither the folder of a run, nor the {SUFFIX} file of a controller or one that ships, nor a fixed "
        f"policy{instead_of(what, (*fixed_policies(), *shipped_files()))}"
    )


def _require_playable(policy: str, env: str, env_kwargs: dict[str, Any]) -> None:
    """Refuse an environment that a fixed policy does not play.

    Raises:
        ValueError: why, and what chooses another.
    """
    made = gym.make(env, **env_kwargs)
    try:
        make_policy(policy).start(made, seed=0)
    except ValueError as error:
        raise ValueError(f"{policy} does not play {env} ({error}); --env names another environment") from error
    finally:
        made.close()


def _of_run(run: Run, env: str | None, env_kwargs: dict[str, Any]) -> Player:
    config = run.config()
    if env is not None and env != config.env:
        raise ValueError(f"the agent of {run.folder} plays {config.env}, not {env}: leave --env out")
    require_settings(config.env, {**config.env_kwargs, **env_kwargs})
    agent = load_agent(run)
    agent.close()
    name = f"{config.agent} ({config.preset}) after {counted(run.progress().episodes, 'training')}, seed {config.seed}"
    return Player(name, agent.policy(), config.env, {**config.env_kwargs, **env_kwargs}, agent.history)


def _of_controller(path: Path, env: str | None, env_kwargs: dict[str, Any]) -> Player:
    controller = Controller.load(path)
    family = controller.settings.family
    if env not in (None, family):
        raise ValueError(f"the controller plays the family of tasks {family}, not {env}: leave --env out")
    own = dict(env_kwargs)
    if "optimizers" in family_arguments(family):
        own = {"optimizers": list(controller.settings.optimizers), **own}
    chosen = [name for name in env_kwargs if name in controller.env_kwargs]
    if chosen:
        raise ValueError(f"{', '.join(chosen)} cannot be set: the controller says it")
    own |= {**controller.env_kwargs, "observation": list(controller.settings.features)}  # as JSON has it
    require_settings(family, own)
    return Player(f"controller {path.name}", ControllerPolicy(controller), family, own)
