"""The rivals: what a practitioner would do, as contenders by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from qan_agents.controllers.controller import FAMILY
from qan_agents.judging.class_rivals import MedianMixture, class_rivals
from qan_agents.judging.contenders import Contender, Controlled, MedianCurve, Replayed, Single, Tuned
from qan_agents.judging.family_settings import COMMAND, Chosen, FamilySettings, read_settings
from qan_agents.judging.methods import Method, Range, Scheduled
from qan_agents.judging.plain_loop import ProdigyCosine, ScheduleFree
from qan_agents.judging.problems import LONG_TAIL
from qan_agents.judging.range_test import RangeTest
from qan_agents.judging.rules import RULES, Ruled
from qan_gym.families.learning_rate import OPTIMIZERS
from qan_gym.utils.names import unknown_name

SCHEDULES = ("constant", "linear", "cosine", "one-cycle", "cooldown")
BUDGETS = (5, 10, 20)  # trainings of a search on the task itself
MEDIAN_CURVE = "median curve"  # of each controller: a rival that needs no settings, see `Replayed`

METHODS: dict[str, Method] = {
    **{f"{optimizer} {name}": Scheduled(optimizer, name) for optimizer in OPTIMIZERS for name in SCHEDULES},
    **{f"sgd {name} by momentum": Scheduled("sgd", name, by_momentum=True) for name in SCHEDULES},
    **{f"{optimizer} range test": RangeTest(optimizer) for optimizer in OPTIMIZERS},
    **{f"{optimizer} {rule}": Ruled(optimizer, rule) for optimizer in OPTIMIZERS for rule in RULES},
    **{f"{optimizer} schedule-free": ScheduleFree(optimizer) for optimizer in OPTIMIZERS},
    "prodigy cosine": ProdigyCosine(),
}

Make = Callable[[FamilySettings], Contender]


def registry() -> dict[str, Make]:
    """All rivals by name, in the order of tables; each is made from the settings that were chosen for the family.

    Making one raises ValueError where its settings have not been chosen.
    """
    found: dict[str, Make] = {f"single {name}": partial(single, name) for name in METHODS}
    for optimizer in OPTIMIZERS:
        for budget in BUDGETS:
            for schedules in (*((name,) for name in SCHEDULES), SCHEDULES):
                name = tuned_name(optimizer, schedules, budget)
                found[name] = partial(tuned, optimizer, schedules, budget)
    return found


def class_registry() -> dict[str, Make]:
    """Those of controllers of the shares of the classes; nothing of them is chosen for the family."""
    return {name: partial(_as_it_is, one) for name, one in class_rivals().items()}


def _as_it_is(contender: Contender, settings: FamilySettings) -> Contender:
    return contender


# Of each family: its rivals, and what is left of a controller without feedback.
OF_FAMILY: dict[str, tuple[Callable[[], dict[str, Make]], type[Replayed]]] = {
    FAMILY: (registry, MedianCurve),
    LONG_TAIL: (class_registry, MedianMixture),
}


def rivals(names: Sequence[str], settings: FamilySettings | None = None, family: str = FAMILY) -> list[Contender]:
    """The rivals of some names.

    Args:
        names: of those of the family; "single" and "tuned" stand for all that begin so; the median curve is left to
            `median_curves`; none: all.
        settings: that were chosen on the training split; None: those of the package.
        family: the id.

    Raises:
        ValueError: a name is unknown, or the settings of a rival have not been chosen.
    """
    known = OF_FAMILY[family][0]()
    if names:
        names = [name for name in names if name != MEDIAN_CURVE]
        if not names:
            return []
    settings = settings or read_settings()
    groups: dict[str, list[str]] = {}
    for name in known:
        groups.setdefault(name.split()[0], []).append(name)
    chosen: list[str] = []
    for name in names or known:
        if name not in known and name not in groups:
            raise ValueError(unknown_name("rival", name, [*groups, MEDIAN_CURVE, *known]))
        chosen += [name] if name in known else groups[name]
    return [known[name](settings) for name in dict.fromkeys(chosen)]


def median_curves(controllers: Sequence[Controlled], networks: Sequence[str], names: Sequence[str]) -> list[Contender]:
    """The median curves of controllers, where they are among some names; no names: all."""
    if names and MEDIAN_CURVE not in names:
        return []
    return [OF_FAMILY[one.controller.settings.family][1].of(one, networks) for one in controllers]


def single(name: str, settings: FamilySettings) -> Single:
    """A method with the settings that were chosen for the family."""
    method = METHODS[name]
    kinds = found_for(name, settings) if method.ranges else {}
    chosen = {kind: tuple(one.settings.items()) for kind, one in kinds.items()} or {"mlp": ()}
    return Single(f"single {name}", method, tuple(chosen.items()))


def tuned(optimizer: str, schedules: Sequence[str], budget: int, settings: FamilySettings) -> Tuned:
    """Schedules tuned on the task itself, each with `budget` trainings."""
    methods = tuple(Scheduled(optimizer, name) for name in schedules)
    ranges = tuple(search_ranges(f"{optimizer} {name}", settings) for name in schedules)
    return Tuned(tuned_name(optimizer, schedules, budget), methods, ranges, budget)


def tuned_name(optimizer: str, schedules: Sequence[str], budget: int) -> str:
    """With the number of all trainings of the search."""
    label = schedules[0] if len(schedules) == 1 else "best of all"
    return f"tuned {optimizer} {label} ({budget * len(schedules)})"


def search_ranges(name: str, settings: FamilySettings) -> tuple[tuple[str, Range], ...]:
    """Where a search on one task looks: one range for all kinds of network, that holds the range of each."""
    every = [one.ranges for one in found_for(name, settings).values()]
    return tuple(
        (key, Range(min(one[key][0] for one in every), max(one[key][1] for one in every), declared.log, declared.whole))
        for key, declared in METHODS[name].ranges.items()
    )


def found_for(name: str, settings: FamilySettings) -> dict[str, Chosen]:
    """What was chosen for a method, by kind of network.

    Raises:
        ValueError: nothing was.
    """
    kinds = settings.methods.get(name, {})
    if "mlp" not in kinds:
        raise ValueError(f"the settings of {name!r} have not been chosen: run {COMMAND}")
    return kinds
