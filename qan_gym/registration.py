"""The table of environment ids, and how Gymnasium learns of them."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

ENTRY_POINTS = {
    "QanLR-MNIST-v0": "qan_gym.env:LearningRateEnv",
    "QanMinibatch-MNIST-v0": "qan_gym.env:MinibatchEnv",
    "QanLR-MNIST5k-v1": "qan_gym.env:LearningRateEnv",
    "QanMinibatch-MNIST5k-v1": "qan_gym.env:MinibatchEnv",
    "QanLR-CIFAR10-v0": "qan_gym.env:LearningRateEnv",
    "QanLR-Family-v0": "qan_gym.families.env:LearningRateFamilyEnv",
    "QanMinibatch-LongTail-v0": "qan_gym.families.env:LongTailEnv",
}
VECTOR_ENTRY_POINT = "qan_gym.vector_env:QanVectorEnv"
LIBRARY = "gymnasium"


def register_envs() -> None:
    """Register every qan-gym id with Gymnasium. Calling it again changes nothing."""
    from gymnasium.envs.registration import register, registry

    for env_id, entry_point in ENTRY_POINTS.items():
        if env_id not in registry:
            # The budget ends an episode inside the environment, so there is no max_episode_steps.
            kwargs = {"env_id": env_id}
            register(env_id, entry_point=entry_point, vector_entry_point=VECTOR_ENTRY_POINT, kwargs=kwargs)


def register_when_imported() -> None:
    """Register the ids at once where Gymnasium is imported already, and else as soon as it is.

    So parts of the package that play no game are imported without Gymnasium, also where it is not installed.
    """
    if sys.modules.get(LIBRARY) is not None:  # None: it is not to be imported
        register_envs()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport:
    """A finder that finds Gymnasium as the others do, and registers the ids when it has been imported."""

    def __init__(self) -> None:
        self.asking = False  # the other finders, of which this is one

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if name != LIBRARY or self.asking:
            return None
        self.asking = True
        try:
            spec = find_spec(name)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                register_envs()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
