"""The task that a run plays, and the fixed policies that it is compared with; neither pictures nor trainings."""

from collections.abc import Sequence
from dataclasses import dataclass

from qan_agents.experiments.run_folder import Run
from qan_gym.config import TaskConfig
from qan_gym.games import Game, game_of
from qan_gym.utils.files import reading


@dataclass(frozen=True)
class PlayedTask:
    """The task of a run, as far as pictures and sentences need it.

    Attributes:
        config: of the task.
        game: what the actions control.
        action_names: of a Discrete action space; empty for the others.
    """

    config: TaskConfig
    game: Game
    action_names: list[str]

    @classmethod
    def of(cls, run: Run) -> "PlayedTask":
        """The task of a run.

        Raises:
            ValueError: the settings of the run are damaged, or its game is not registered.
        """
        run.config()
        settings = run.settings()
        with reading(run.folder / "config.json", "the settings of a run of this version of qan-gym"):
            config = TaskConfig(**settings.task)  # type: ignore[arg-type]  # which TaskConfig checks
            return cls(config, game_of(config), settings.action_names)


def rivals_of(task: TaskConfig, baselines: Sequence[str] | None) -> list[str]:
    """The fixed policies that an agent is compared with: its base schedule with nobody acting, then the baselines.

    Args:
        task: that the agent plays.
        baselines: the first is the baseline; None: those of the game.
    """
    base = base_schedule(task)
    return list(dict.fromkeys([*([base] if base is not None else []), *(baselines or game_of(task).baselines)]))


def baseline_of(task: TaskConfig, baselines: Sequence[str] | None) -> str:
    """The rival that everybody is counted against; arguments as `rivals_of` takes them."""
    return (baselines or game_of(task).baselines)[0]


def base_schedule(task: TaskConfig) -> str | None:
    """The fixed policy that nobody acting is: that of the game, or the schedule under the actions.

    None: there is no action that leaves everything as it is, or the schedule is constant.
    """
    game = game_of(task)
    if game.no_op(task) is None:
        return None
    return game.base or (None if task.schedule == "constant" else task.schedule)
