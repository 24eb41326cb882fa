"""The rivals: what a practitioner would do, as contenders by name."""

from __future__ import annotations

from collections.abc import Sequence

from qan_agents.judging.contenders import Contender, Single, Tuned
from qan_agents.judging.family_settings import COMMAND, FamilySettings, read_settings
from qan_agents.judging.methods import Method, Range, Scheduled
from qan_gym.families.learning_rate import OPTIMIZERS
from qan_gym.utils.names import unknown_name

SCHEDULES = ("constant", "linear", "cosine", "one-cycle", "cooldown")
BUDGETS = (5, 10, 20)  # trainings of a search on the task itself

METHODS: dict[str, Method] = {
    **{f"{optimizer} {name}": Scheduled(optimizer, name) for optimizer in OPTIMIZERS for name in SCHEDULES},
    **{f"sgd {name} by momentum": Scheduled("sgd", name, by_momentum=True) for name in SCHEDULES},
}


def rivals(names: Sequence[str] | None = None, settings: FamilySettings | None = None) -> list[Contender]:
    """The rivals of some names.

    Args:
        names: None: all. "single", "tuned": all that begin so.
        settings: that were chosen on the training split; None: those of the package.

    Raises:
        ValueError: a name is unknown, or the settings of a rival have not been chosen.
    """
    known = {one.name: one for one in every_rival(settings or read_settings())}
    groups = {name.split()[0]: [one for one in known if one.split()[0] == name.split()[0]] for name in known}
    chosen: list[str] = []
    for name in names if names is not None else known:
        if name not in known and name not in groups:
            raise ValueError(unknown_name("rival", name, [*groups, *known]))
        chosen += [name] if name in known else groups[name]
    return [known[name] for name in dict.fromkeys(chosen)]


def every_rival(settings: FamilySettings) -> list[Contender]:
    """All of them, in the order of tables.

    Raises:
        ValueError: the settings of one have not been chosen.
    """
    found: list[Contender] = [single(name, settings) for name in METHODS]
    for optimizer in OPTIMIZERS:
        for budget in BUDGETS:
            found += [tuned(optimizer, (name,), budget, settings) for name in SCHEDULES]
            found.append(tuned(optimizer, SCHEDULES, budget, settings))
    return found


def single(name: str, settings: FamilySettings) -> Single:
    """A method with the settings that were chosen for the family."""
    method = METHODS[name]
    if method.ranges and "mlp" not in settings.methods.get(name, {}):
        raise ValueError(f"the settings of {name!r} have not been chosen: run {COMMAND}")
    kinds = settings.methods.get(name, {}) if method.ranges else {}
    chosen = {kind: tuple(one.settings.items()) for kind, one in kinds.items()} or {"mlp": ()}
    return Single(f"single {name}", method, tuple(chosen.items()))


def tuned(optimizer: str, schedules: Sequence[str], budget: int, settings: FamilySettings) -> Tuned:
    """Schedules tuned on the task itself, each with `budget` trainings."""
    names = [f"{optimizer} {name}" for name in schedules]
    methods = [METHODS[name] for name in names]
    ranges = []
    for name in names:
        if "mlp" not in settings.methods.get(name, {}):
            raise ValueError(f"the ranges of {name!r} have not been chosen: run {COMMAND}")
        # One range for all kinds of network: that which holds the range of each.
        every = [one.ranges for one in settings.methods[name].values()]
        whole = {key: (min(one[key][0] for one in every), max(one[key][1] for one in every)) for key in every[0]}
        logs = {key: one.log for key, one in METHODS[name].ranges.items()}
        ranges.append(tuple((key, Range(low, high, logs[key])) for key, (low, high) in whole.items()))
    label = schedules[0] if len(schedules) == 1 else "best schedule"
    total = budget * len(schedules)
    scheduled = tuple(method for method in methods if isinstance(method, Scheduled))
    return Tuned(f"tuned {optimizer} {label} ({total})", scheduled, tuple(ranges), budget)
