"""`qan dataset`, `qan push` and `qan pull`: what others can use."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qan_agents.cli.common import (
    MOST,
    ImportOption,
    SeedOption,
    SetOption,
    console,
    expanded,
    extra_required,
    parse_settings,
    progress_bar,
)

if TYPE_CHECKING:
    from qan_agents.policies.rollout import Episode

RepositoryArgument = Annotated[str, typer.Argument(metavar="REPOSITORY", help="On the hub: OWNER/NAME.")]


def dataset(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="Plays: a run's folder, a controller's file or the name of one that ships, or a fixed policy; "
            "qan list has the names.",
        ),
    ],
    out: Annotated[str, typer.Option(metavar="NAME", help="The id of the dataset, with a version: NAME-v0.")],
    episodes: Annotated[int, typer.Option(min=1, max=MOST, help="How many trainings to play.")] = 20,
    env: Annotated[
        str | None, typer.Option(help="What a controller or a fixed policy plays; a run's agent plays its own.")
    ] = None,
    seed: SeedOption = 0,
    settings: SetOption = None,
    modules: ImportOption = None,
) -> None:
    """Play episodes and write them as a Minari dataset, to learn from offline."""
    with extra_required("minari"):
        from qan_agents.sharing.dataset import check_id, write_dataset
    from qan_agents.sharing.players import player_of

    check_id(out)
    player = player_of(what, env, parse_settings(settings))
    console.print(f"{player.name} plays {player.env}")
    with progress_bar("episode {task.completed}/{task.total}") as bars:
        bar = bars.add_task("", total=episodes)

        def finished(number: int, episode: "Episode") -> None:
            bars.update(bar, completed=number + 1)
            bars.console.print(f"episode {number + 1}  return {episode.total_reward:.3f}")

        folder = write_dataset(player, episodes, seed, out, finished)
    console.print(f'written: {folder}; load it with minari.load_dataset("{out}")')


def push(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="WHAT",
            help="A run's folder, a controller's file, or the name of one that ships.",
            callback=expanded,
        ),
    ],
    repository: RepositoryArgument,
    judgement: Annotated[
        Path | None,
        typer.Option(help="A scoreboard of qan judge that has the controller, for its card.", callback=expanded),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is not public.")] = False,
    dry_run: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write what would be pushed to a new folder instead.", callback=expanded),
    ] = None,
) -> None:
    """Put an agent or a controller on the Hugging Face hub, with a model card."""
    with extra_required("hub"):
        from qan_agents.sharing.hub import collect, push_to_hub

    files = collect(what, repository, judgement)
    if dry_run is not None:
        from qan_gym.utils.files import require_writable, write_bytes

        require_writable(dry_run)
        if dry_run.exists():
            raise ValueError(f"{dry_run} is there already: give a new folder")
        for name, content in files.items():
            write_bytes(dry_run / name, content)
            console.print(f"written: {dry_run / name}")
        return
    console.print(f"pushed: {push_to_hub(files, repository, private)}")


def pull(
    repository: RepositoryArgument,
    out: Annotated[
        Path | None, typer.Option(help="The folder; default: the repository's name.", callback=expanded)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit; default: the newest.")] = None,
) -> None:
    """Get an agent or a controller from the Hugging Face hub: safetensors and JSON, and nothing that could run code."""
    with extra_required("hub"):
        from qan_agents.sharing.hub import pull_from_hub

    for line in pull_from_hub(repository, out, revision):
        console.print(line)
