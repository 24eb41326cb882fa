"""`qan list`, `qan check`, `qan data` and `qan reference`: the environments, their data and reference weights."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from qan_agents.budgets import LEAST_SEEDS, LEAST_STEPS
from qan_agents.cli.common import (
    MOST,
    EnvArgument,
    ImportOption,
    SetOption,
    console,
    expanded,
    extra_required,
    parse_settings,
    print_wrapped,
    progress_bar,
    table_of,
)
from qan_gym.utils.durations import in_words
from qan_gym.utils.names import unknown_name

ESTIMATE_AFTER = 3  # seconds of a check, after which it is said how long it takes


def list_environments(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Of an environment, to list its arguments; of an agent, its presets; of a controller that ships, what "
            "it is.",
        ),
    ] = None,
    modules: ImportOption = None,
) -> None:
    """The environments, the agents, the fixed policies and the controllers; or what one of them has."""
    from qan_agents.agents import agent_class, agent_names
    from qan_agents.controllers.shipped import shipped_files
    from qan_gym.registration import ENTRY_POINTS

    if name is None:
        _list_all()
    elif name in ENTRY_POINTS:
        _list_arguments(name)
    elif name in agent_names():
        console.print(f"presets of {name}: {', '.join(agent_class(name).presets)}")
    elif name in shipped_files():
        _list_controller(name)
    else:
        known = (*ENTRY_POINTS, *agent_names(), *shipped_files())
        raise ValueError(unknown_name("environment, agent or controller that ships", name, known))


def _list_arguments(env_id: str) -> None:
    """What `gym.make` takes for an id, and `--set`."""
    from qan_gym.core.factory import arguments_of

    columns = ("name", "here", "accepted", "meaning")
    caption = "keyword arguments of gym.make, and --set NAME=VALUE"
    table = table_of(*columns, title=f"arguments of {env_id}", caption=caption, pad_edge=False)
    for name, argument in arguments_of(env_id).items():
        here = ", ".join(map(str, argument.value)) if isinstance(argument.value, tuple) else str(argument.value)
        table.add_row(name, here, argument.accepted, argument.meaning)
    print_wrapped(table)


def _list_controller(name: str) -> None:
    """What a controller that ships is, and how it was made."""
    from qan_agents.controllers.controller import Controller
    from qan_agents.controllers.description import facts, flat, what_it_is
    from qan_agents.controllers.shipped import shipped_files

    path = shipped_files()[name]
    controller = Controller.load(path)
    print_wrapped(f"{name}: {what_it_is(controller.settings)}")
    for what, value in {**facts(controller), **flat(controller.provenance), "file": path}.items():
        print_wrapped(f"  {what}: {value}")


def _list_all() -> None:
    from qan_agents.agents import agent_names
    from qan_agents.bench.preparation import controllers
    from qan_agents.controllers.shipped import shipped_files
    from qan_agents.policies.fixed import fixed_policies
    from qan_gym.core.engine import engine_here
    from qan_gym.games import game_of
    from qan_gym.registration import ENTRY_POINTS
    from qan_gym.tasks import FAMILIES, TASKS

    caption = "batch: images of a mini-batch; per action: mini-batches"
    columns = ("id", "controls", "data", "batch", "epochs", "per\naction")  # which 80 columns hold
    table = table_of(*columns, title="environments", caption=caption, pad_edge=False)
    for env_id in ENTRY_POINTS:
        task = TASKS[env_id]
        values = (task.batch_size, task.epochs, task.batches_per_action)
        numbers = ("drawn" if env_id in FAMILIES else str(value) for value in values)
        table.add_row(env_id, game_of(task).controlled, task.dataset, *numbers)
    print_wrapped(table)
    print_wrapped("arguments of an environment: qan list ID")
    print_wrapped(f"agents: {', '.join(agent_names())}; their presets: qan list AGENT")
    print_wrapped(f"fixed policies: {', '.join(fixed_policies())}")
    print_wrapped(f"controllers of qan bench: {', '.join(controllers())}")
    print_wrapped(f"controllers that ship, for qan judge: {', '.join(shipped_files())}; what each is: qan list NAME")
    console.print(f"engine of mnist-cnn on this CPU: {engine_here()}")


def check(
    env: Annotated[str, typer.Argument(metavar="ENV", help="Any Gymnasium id; MODULE:ID imports the module first.")],
    seeds: Annotated[
        int,
        typer.Option(
            min=LEAST_SEEDS,
            max=MOST,
            help="How many seeds every sequence is played on; where tasks are drawn, four or more on each task.",
        ),
    ] = 8,
    steps: Annotated[
        int | None, typer.Option(min=LEAST_STEPS, max=MOST, help="Of an episode that are played; default: all.")
    ] = None,
    settings: SetOption = None,
    modules: ImportOption = None,
) -> None:
    """Certify that the actions of an environment matter beyond seed noise; the exit status is 1 if not."""
    from qan_agents.env_ids import require_settings

    with extra_required("bench"):
        from qan_agents.analysis import action_effect
    env_kwargs = parse_settings(settings)
    require_settings(env, env_kwargs)
    with progress_bar("playing {task.description}") as bars:
        found = action_effect.certify(env, env_kwargs, seeds, steps, _progress(bars))
    console.print(f"{found.outcome} on {found.seeds}; every sequence begins with {found.first}")
    numbers_of = ("mean", "standard deviation", "lowest", "highest")
    table = table_of("actions", *numbers_of, right=numbers_of)
    for name, values, deviation in zip(found.sequences, found.outcomes, found.deviations, strict=True):
        numbers = (values.mean(), deviation, values.min(), values.max())
        table.add_row(name, *(f"{value:.4g}" for value in numbers))
    print_wrapped(table)
    console.print(
        f"between sequences {found.between_sequences:.4g}, between seeds {found.between_seeds:.4g}: "
        f"{found.ratio:.3g} times (above {action_effect.LEAST_RATIO:g} wanted)\n"
        f"Friedman's test: p = {found.p_value:.2g} (below {action_effect.SIGNIFICANCE:g} wanted)\n{found.verdict}"
    )
    if not found.certified:
        raise typer.Exit(1)


def _progress(bars: Progress) -> Callable[[str, float], None]:
    """What shows the share that is done in a bar, and, where none is seen too, says once how long the rest takes."""
    bar, said = bars.add_task("", total=1.0), False
    first: tuple[float, float] | None = None  # when it was, and the share; what is loaded before it takes a while

    def show(name: str, share: float) -> None:
        nonlocal first, said
        bars.update(bar, completed=share, description=name)
        now = time.perf_counter()
        if first is None and share > 0:
            first = now, share
        if not said and first is not None and now - first[0] > ESTIMATE_AFTER and share < 1:
            said = True
            seconds = (now - first[0]) / (share - first[1]) * (1 - share)
            bars.console.print(f"{in_words(seconds)} left")

    return show


def data(
    fetch: Annotated[bool, typer.Option("--fetch", help="Download what is missing.")] = False,
) -> None:
    """Say which data sets are there, and verify them."""
    from qan_gym.data.datasets import DATASETS, data_root, load_dataset
    from qan_gym.data.downloads import SOURCES, download, missing

    root = data_root()
    table = table_of("data set", "train", "validation", "test", "classes", "fingerprint")
    not_there = []
    for name in DATASETS:
        if name in SOURCES and missing(name, root):
            if not fetch:
                not_there.append(f"{name} is missing: {missing(name, root)[0]}; get it with qan data --fetch")
                continue
            download(name, root)
        dataset = load_dataset(name)
        sizes = (f"{len(split):,}" for split in (dataset.train, dataset.validation, dataset.test))
        table.add_row(name, *sizes, str(dataset.n_classes), dataset.fingerprint[:12])
    console.print(f"data in {root}")
    print_wrapped(table)
    for line in not_there:
        console.print(line)


def reference(
    env: EnvArgument,
    settings: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to; default: the user's cache.", callback=expanded)
    ] = None,
    device: Annotated[str, typer.Option(help="To train on: cpu, cuda.")] = "cpu",
    modules: ImportOption = None,
) -> None:
    """Make the reference weights of an environment, anew where they are there, and keep them in the cache."""
    import numpy as np

    from qan_agents.env_ids import PLACES, task_of
    from qan_gym.core.references import make_reference, reference_name, reference_path
    from qan_gym.data.datasets import ASSETS
    from qan_gym.utils.files import load_arrays

    env_kwargs = parse_settings(settings)
    if any(name in env_kwargs for name in PLACES):
        raise ValueError(f"{' and '.join(PLACES)} are no settings of a task: give --device")
    config = task_of(env, env_kwargs)
    weights = make_reference(config, out, device)
    console.print(f"made: {reference_path(config, out)}")
    shipped = ASSETS / "references" / reference_name(config)
    if shipped.is_file():
        arrays, _ = load_arrays(shipped)
        distance = max(float(np.abs(arrays[name] - weights[name].numpy()).max()) for name in arrays)
        console.print(f"largest difference from the weights in the package: {distance:.3g}")
