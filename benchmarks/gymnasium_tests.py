"""Gymnasium's own tests of environments and of vector environments, played by the games of this package.

git clone --depth 1 --branch v1.4.0 https://github.com/Farama-Foundation/Gymnasium
python benchmarks/gymnasium_tests.py Gymnasium

The checkout gives its tests, and is of the version that is installed, which they test. Where they go through all
environments, they go through `GAMES`; where they name one of Gymnasium's, they get a game of `STAND_INS`. `NOT_OURS`
says which tests are left out, and why. It needs pytest, and what draws pictures (the extra `render`).
"""

import argparse
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs import classic_control
from gymnasium.envs.classic_control import cartpole
from gymnasium.utils import env_checker

from qan_gym.env import LearningRateEnv, QanEnv
from qan_gym.vector_env import QanVectorEnv

FILES = (
    *("envs/test_envs.py", "envs/test_rendering.py", "envs/test_action_dim_check.py"),
    *("envs/registration/test_make.py", "envs/registration/test_make_vec.py"),
    *("vector/test_async_vector_env.py", "vector/test_autoreset_mode.py", "vector/test_sync_vector_env.py"),
    *("vector/test_vector_env.py", "vector/test_vector_wrapper.py"),
    *("wrappers/vector/test_dict_info_to_list.py", "wrappers/vector/test_record_episode_statistics.py"),
    "wrappers/vector/test_vector_wrappers.py",
)
SHORT = {"epochs": 1, "meta_momentum": None, "reference": None}  # 40 or 31 actions, and nothing is trained before
GAMES: dict[str, dict[str, Any]] = {  # those whose images come with the package
    "QanLR-MNIST5k-v1": SHORT,
    "QanMinibatch-MNIST5k-v1": SHORT,
    "QanLR-Family-v0": {},
    "QanMinibatch-LongTail-v0": {},
}
NOT_OURS = {  # the reason, and what is searched for in the names and the parameters of the tests
    "plays an environment that the test makes": r"disable_env_checker|make_kwargs|import_module|make_errors|_timeout_|"
    r"missing_autoreset|custom_space|float16|subenv_error|test_autoreset_|same_step_final_obs|obs_action_spaces|"
    r"final_obs_info|(create|step)_sync_vector|wrapper_inheritance|update_info|test_errors|with_autoreset_mode|DictObs",
    "draws CarRacing, or wraps its pictures": r"make_human_rendering|CarRacing",
    "expects that CartPole draws with pygame": r"pygame_selective_init",
    "expects that CartPole takes any render_mode, where ours names those that there are": r"make_with_render_mode",
    "sets CartPole's sutton_barto_reward": r"sutton_barto_reward",
    "rescales CartPole's four numbers": r"RescaleObservation",
    "expects an empty info": r"test_reset_async_vector_env",
    "expects no length of an episode in a spec without TimeLimit, where ours has its own": r"test_max_episode_steps",
}


class Game(LearningRateEnv):
    """In the place of CartPole's class, which is made without arguments, and which tests ask for its `gravity`."""

    gravity = 9.8

    def __init__(self, env_id: str = "QanLR-MNIST5k-v1", **kwargs: Any) -> None:
        """A short training."""
        super().__init__(env_id, **SHORT | kwargs)


CARTPOLE = replace(gym.spec("QanLR-MNIST5k-v1"), entry_point=Game, max_episode_steps=40)
STAND_INS = {
    "CartPole-v1": replace(CARTPOLE, kwargs={**CARTPOLE.kwargs, **SHORT}),
    "BipedalWalker-v3": gym.spec("QanLR-Family-v0"),  # whose actions are a Box
    "MountainCarContinuous-v0": gym.spec("QanLR-Family-v0"),
}


class Plugin:
    """Leaves out what is in `NOT_OURS`, and counts the tests that made or reset a game."""

    def __init__(self) -> None:
        """Listen to the games."""
        self.left_out: Counter[str] = Counter()
        self.plays, self.played = False, 0
        for environment in (QanEnv, QanVectorEnv):
            for name in ("__init__", "reset"):
                setattr(environment, name, self._heard(getattr(environment, name)))

    def _heard(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def heard(*args: Any, **kwargs: Any) -> Any:
            self.plays = True
            return method(*args, **kwargs)

        return heard

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Sort out what cannot apply."""
        kept = []
        for item in items:
            values = item.callspec.params.values() if hasattr(item, "callspec") else ()
            text = f"{item.name} {[getattr(value, 'id', value) for value in values]}"  # of a spec its id alone
            reasons = [reason for reason, pattern in NOT_OURS.items() if re.search(pattern, text)]
            self.left_out.update(reasons[:1])
            kept += [] if reasons else [item]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count, after each test."""
        if report.when == "call":
            self.played += report.passed and self.plays
            self.plays = False

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was left out."""
        for reason, count in self.left_out.items():
            terminalreporter.write_line(f"left out: {count}: {reason}")
        terminalreporter.write_line(f"tests that passed and played a game: {self.played}")


def marked(data: Any) -> Any:
    """Infos with a number for NaN, which arrays of them hold before the end of an episode, and which is not itself."""
    if isinstance(data, dict):
        return {name: marked(value) for name, value in data.items()}
    if isinstance(data, tuple | list):
        return type(data)(marked(value) for value in data)
    return np.nan_to_num(data, nan=-1e30) if isinstance(data, np.ndarray) and data.dtype.kind == "f" else data


def take_their_places() -> None:
    """Put the games in the places of Gymnasium's environments."""
    with warnings.catch_warnings(action="ignore"):  # it makes all of Gymnasium's, and says what is not installed
        utils = import_module("tests.envs.utils")
    for name, kwargs in GAMES.items():
        gym.registry[name] = replace(gym.spec(name), kwargs={**gym.spec(name).kwargs, **kwargs})
    for name, spec in STAND_INS.items():
        gym.registry[name] = replace(spec, id=name)
    classic_control.CartPoleEnv = cartpole.CartPoleEnv = Game
    cartpole.CartPoleVectorEnv = QanVectorEnv
    utils.all_testing_initialised_envs[:] = [gym.make(name, disable_env_checker=True).unwrapped for name in GAMES]
    utils.all_testing_env_specs[:] = [env.spec for env in utils.all_testing_initialised_envs]
    utils.mujoco_testing_env_specs.clear()
    equivalent = env_checker.data_equivalence
    env_checker.data_equivalence = lambda one, other, exact=False: equivalent(marked(one), marked(other), exact)


def main() -> int:
    """Run the tests; returns pytest's exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of Gymnasium, with its folder tests")
    arguments, of_pytest = parser.parse_known_args()
    checkout = arguments.checkout.resolve()
    if not (checkout / "tests/envs/utils.py").is_file():
        parser.error(f"{arguments.checkout} is not a checkout of Gymnasium: it has no tests/envs/utils.py")
    if f'__version__ = "{gym.__version__}"' not in (checkout / "gymnasium/__init__.py").read_text(encoding="utf-8"):
        parser.error(f"Gymnasium {gym.__version__} is installed: check out its tag, v{gym.__version__}")
    sys.path.append(str(checkout))  # last, so that the Gymnasium that is installed comes before it
    take_their_places()
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--import-mode=append"]
    with tempfile.TemporaryDirectory() as folder:  # for what they write
        os.chdir(folder)
        options += ["-c", str(checkout / "pyproject.toml"), *of_pytest]
        return pytest.main([*(str(checkout / "tests" / file) for file in FILES), *options], plugins=[Plugin()])


if __name__ == "__main__":
    sys.exit(main())
