"""What a controller is, in words, for its model card and for `qan list`."""

from __future__ import annotations

from typing import Any

from qan_agents.controllers.controller import Controller, ControllerSettings


def what_it_is(settings: ControllerSettings) -> str:
    """A sentence without its full stop."""
    optimizers = " and ".join(settings.optimizers)
    if settings.factor is None:
        kind = f"A small policy that sets the shares of the classes in the mini-batches of {optimizers}"
    else:
        kind = (
            f"A controller of the learning rate for {optimizers}: a small policy that sees statistics of a training "
            "and multiplies its learning rate"
        )
    return f"{kind}, made by qan meta-train on the tasks of {settings.family}"


def facts(controller: Controller) -> dict[str, str]:
    """What it sees and does."""
    settings = controller.settings
    if settings.factor is None:
        actions = {"actions": "a number in [-1, 1] for each class, see the environment's continuous=True"}
    else:
        actions = {
            "actions": f"multiply the learning rate by {settings.factor:g}**a, a in [-1, 1]",
            "base schedule": settings.schedule,
        }
    weights = sum(value.size for value in controller.weights.values())
    return {"sees": ", ".join(settings.features), **actions, "weights": f"{weights:,}"}


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, as those in a controller's provenance, as one level: "config: seed"."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {f"{name}: {inner}": one for inner, one in flat(value).items()}
        else:
            found[name] = value
    return found
