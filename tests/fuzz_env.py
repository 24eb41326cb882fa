"""Fuzzed episodes: random ids, keyword arguments, resets, actions and states, right and wrong ones, in both engines.

    python tests/fuzz_env.py --steps 100000 --seed 0

Every environment must give finite numbers within its spaces, and refuse what is wrong with a ValueError, a TypeError, a
FileNotFoundError (a path) or an error of Gymnasium's. What else happens is printed with the arguments, and the exit
status is 1. The same seed tries the same. A step of a vector environment of N rows counts as N steps.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch
from golden_traces import own_cache
from helpers import made_npz

import qan_gym  # noqa: F401 (registers the environments)
from qan_gym.core.features import FEATURES
from qan_gym.core.reward import REWARDS
from qan_gym.families import draw_task
from qan_gym.schedules import SCHEDULES
from qan_gym.tasks import TASKS

REFUSED = (ValueError, TypeError, FileNotFoundError, gym.error.Error)
DEEP, FAMILY = "QanLR-CIFAR10-v0", "QanLR-Family-v0"
EVERYWHERE = [name for name, feature in FEATURES.items() if feature.reads is None]
EPISODES = 2  # that an environment plays, at most
NONSENSE: tuple[Any, ...] = (
    *(None, True, False, "", "x", "None", "nan", b"x", (), [], {}, set(), [1], ["x"], {"a": 1}, object(), 1j, print),
    *(0, 1, -1, 3, 10**12, 2**31, 2**63, -(2**63), 10**200, 10**5000),
    *(0.0, -0.0, 0.5, -0.1, 1.5, 1e-320, 1e-40, 1e38, 1e39, 1e308, -1e308, math.inf, -math.inf, math.nan),
    *(np.int64(3), np.float32(0.1), np.float64(0.2), np.bool_(True), np.str_("x"), np.datetime64(1, "s")),
    *(np.array(1), np.array([1, 2]), np.array(["screen"]), np.zeros((2, 2)), np.array([]), torch.tensor(1.0)),
)


class Fuzzer:
    """Draws what to try.

    Attributes:
        steps: that were played.
        tried: counts of what was tried, by kind.
        faults: one line each.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        """folder: for the data that are played on."""
        self.rng = np.random.default_rng(seed)
        self.digits = made_npz(folder / "digits.npz", n_train=90, n_test=10)
        self.photographs = made_npz(folder / "photographs.npz", n_train=40, n_test=10, shape=(32, 32, 3))
        self.steps, self.tried, self.faults = 0, Counter[str](), list[str]()

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.rng.random() < probability)

    def one_of(self, options: Any) -> Any:
        """One of some values."""
        options = tuple(options)
        return options[self.rng.integers(len(options))]

    # --- arguments --------------------------------------------------------------------------------------------------

    def arguments(self, env_id: str) -> dict[str, Any]:
        """Arguments that go together, of an episode of a few steps."""
        if env_id == FAMILY:
            return self.family_arguments()
        deep = env_id == DEEP
        chosen: dict[str, Any] = {
            "dataset": self.photographs if deep else self.digits,
            "train_size": self.one_of([12, 20] if deep else [20, 40, 60, 80]),
            "batch_size": self.one_of([4, 8] if deep else [1, 2, 5, 7]),
            "epochs": self.one_of([1, 2]),
            "batches_per_action": self.one_of([1, 1, 2, 3]),
            **({"network": "resnet-8"} if deep else {}),
        }
        for name, options in self._options(env_id).items():
            if self.chance(0.1):
                chosen[name] = options()
        if not deep and self.chance(0.85):
            chosen |= {"meta_momentum": None, "reference": self.one_of([None, "previous"])}
        return chosen | ({"reference": self.one_of([None, "previous"])} if deep else {})

    def family_arguments(self) -> dict[str, Any]:
        """Of a few tasks of the family, or of one of a few mini-batches."""
        one_of, number = self.one_of, int(self.rng.integers(2**31))
        split, networks = one_of(["train", "test"]), one_of([["mlp"], ["mlp"], ["mlp"], ["cnn"], ["mnist-cnn", "mlp"]])
        optimizers = one_of([["sgd"], ["adamw"], ["sgd", "adamw"]])
        task = replace(draw_task(split, number, networks, optimizers), batches_per_action=one_of([1, 2, 3]))
        chosen = {"task": one_of([task, asdict(task), task.to_json()])}
        if networks == ["mlp"] and self.chance(0.3):
            few = {"num_tasks": int(self.rng.integers(1, 2**31 - number)), "start_task": number}
            chosen = {"networks": networks, "optimizers": optimizers, "split": split, **few, "engine": "native"}
        chosen["context"] = one_of(["hidden", "observed"])
        names = ("observation", "reward", "target_loss", "validate_every", "early_stopping", "schedule", "action_scale")
        for name in (*names, "continuous", "learning_rate_max", "learning_rate_step"):
            if self.chance(0.1):
                chosen[name] = self._options(FAMILY)[name]()
        return chosen

    def _options(self, env_id: str) -> dict[str, Callable[[], Any]]:
        one_of, rng = self.one_of, self.rng
        return {
            "optimizer": lambda: one_of(["sgd", "adamw"]),
            "learning_rate": lambda: float(rng.uniform(0.01, 1.0)),
            "learning_rate_min": lambda: float(rng.uniform(1e-30, 0.01)),
            "learning_rate_max": lambda: float(10 ** rng.uniform(0, 38)),
            "learning_rate_step": lambda: float(10 ** rng.uniform(-6, 30)),
            "momentum": lambda: float(rng.uniform(0, 1)),
            "nesterov": lambda: one_of([True, False]),
            "weight_decay": lambda: float(10 ** rng.uniform(-8, 30)),
            "continuous": lambda: one_of([True, False]),
            "action_scale": lambda: one_of(["additive", "multiplicative", "absolute"]),
            "schedule": lambda: one_of(SCHEDULES),
            "observation": lambda: one_of(
                [
                    "screen",
                    "filters",
                    "statistics",
                    ["log_loss"],
                    EVERYWHERE,
                    list(FEATURES),
                    ("budget_used", "momentum"),
                ]
            ),
            "reward": lambda: one_of(REWARDS),
            "target_loss": lambda: float(10 ** rng.uniform(-3, 30)),
            "validate_every": lambda: one_of([1, 2, 3, 1000, 2**31 - 1]),
            "early_stopping": lambda: one_of([1, 2, 2**31 - 1]),
            "meta_momentum": lambda: one_of([0, 0.1, 1, "filter-regression", 1e-30, None]),
            "pull_epochs": lambda: one_of([None, 0, 1, 2**31 - 1]),
            "augment": lambda: one_of([None, "zero", "reflect"]),
            "preprocess": lambda: one_of(["normalise", "whiten"]),
            "distillation": lambda: float(10 ** rng.uniform(-8, 30)),
            "precision": lambda: one_of(["float32", "bf16", "tf32"]),
            "engine": lambda: one_of(["auto", "native", "torch"]),
            "game": lambda: one_of(["learning-rate", "minibatch"]),
        }

    def spoil(self, arguments: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """Some arguments get values of any kind, right or wrong."""
        spoilt = dict(arguments)
        for _ in range(self.rng.integers(1, 4)):
            spoilt[self.one_of([*names, "no_such_argument"])] = self.one_of(NONSENSE)
        return spoilt

    # --- one environment --------------------------------------------------------------------------------------------

    def attempt(self, what: str, arguments: Any, function: Callable[[], Any]) -> Any:
        """What a function returns; None where it refuses. Any other exception is a fault, and each in playing."""
        self.tried[what] += 1
        refused = () if what in ("play", "close") else REFUSED
        try:
            return function()
        except refused as error:
            self.tried[f"{what}: refused"] += 1
            if not str(error).strip():
                self.fault(what, arguments, f"{type(error).__name__} without a message")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.fault(what, arguments, f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
        return None

    def fault(self, what: str, arguments: Any, found: str) -> None:
        """Write down and print what should not have been."""
        self.faults.append(f"{what} {_short(arguments)}: {found}")
        print("FAULT", self.faults[-1], flush=True)

    def play_one(self) -> None:
        """Make an environment, and play some episodes with it."""
        env_id = DEEP if self.chance(0.03) else self.one_of(sorted(TASKS.keys() - {DEEP}))
        vector = self.chance(0.6)
        arguments = self.arguments(env_id)
        slow = env_id == DEEP or "cnn-" in str(arguments.get("task"))
        if vector:
            arguments |= {
                "num_envs": self.one_of([1, 2] if slow else [1, 3, 64, 256, 256]),
                "autoreset_mode": self.one_of(["NextStep", "SameStep", "Disabled"]),
                "output": self.one_of(["numpy", "torch"]),
            }
            if self.chance(0.3):
                arguments["max_episode_steps"] = int(self.rng.integers(1, 8))
        if self.chance(0.02):
            arguments["render_mode"] = "rgb_array"
            arguments |= {"num_envs": 1} if vector else {"baseline_run": self.chance(0.5)}
        if self.chance(0.4):
            known = [*arguments, *self._options(env_id), "device", "render_mode", "baseline_run", "env_id"]
            arguments = self.spoil(arguments, known)
        if _too_large(arguments):
            return
        # Gymnasium's checker fails in the first step where the first reset was refused.
        make = gym.make_vec if vector else partial(gym.make, disable_env_checker=True)
        env = self.attempt("make", (env_id, arguments), lambda: make(env_id, **arguments))
        if env is None:
            return
        if env.unwrapped.training.parts.engine == "torch" and vector and env.num_envs > 3 and self.chance(0.95):
            return  # several times slower
        play = self.play_rows if vector else self.play_single
        self.attempt("play", (env_id, arguments), lambda: play(env, (env_id, arguments)))
        self.attempt("close", (env_id, arguments), env.close)

    def reset(self, env: Any, made: Any) -> Any:
        """Reset with seeds and options of any kind; then, where that was refused, with right ones."""
        if self.chance(0.2):
            seed, options = self.one_of(NONSENSE), self.one_of([None, *NONSENSE, {"sampler": "shuffled"}])
            # The largest seeds are right, and nothing is wrong with what is then played.
            done = self.attempt("reset", (made, seed, options), lambda: env.reset(seed=seed, options=options))
            if done is not None:
                return done
        return env.reset(seed=int(self.rng.integers(2**40)), options=self.one_of([None, {}, {"sampler": "game"}]))

    def play_single(self, env: Any, made: Any) -> None:
        """Episodes of random actions; in between wrong actions, copies and damaged states."""
        for _ in range(EPISODES):
            observation, info = self.reset(env, made)
            names, over = set(info), False
            while not over:
                if self.chance(0.05):
                    self.attempt("action", made, lambda: env.unwrapped.step(self.one_of(NONSENSE)))
                    if env.unwrapped.training.run.over[0]:
                        break
                if self.chance(0.02):
                    self.damaged_state(env.unwrapped, made)
                observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
                over = terminated or truncated
                self.steps += 1
                self.check(made, observation in env.observation_space, "the observation is not in its space")
                self.check(made, math.isfinite(reward), f"reward {reward}")
                self.check(made, set(info) == names, f"other names in the info: {set(info) ^ names}")
                unmeasured = {name for name, value in flat(info).items() if not math.isfinite(value)}
                expected = set() if over else {"test_loss", "test_accuracy"}
                self.check(made, unmeasured == expected, f"not finite: {unmeasured}")

    def play_rows(self, env: Any, made: Any) -> None:
        """The same with N rows."""
        disabled = env.metadata["autoreset_mode"].value == "Disabled"
        _, infos = self.reset(env, made)
        names = set(infos)
        native = env.training.parts.engine == "native"
        for _ in range(EPISODES * min(env.episode_length, 60 if native else 6)):
            if self.chance(0.03):
                self.attempt("actions", made, lambda: env.step(self.one_of(NONSENSE)))
            if disabled and env.over.any():
                env.reset(options={"reset_mask": env.over})
            observations, rewards, _, _, infos = env.step(env.action_space.sample())
            self.steps += env.num_envs
            self.check(made, names <= set(infos), f"names missing from the infos: {names - set(infos)}")
            values = flat({name: infos[name] for name in names & set(infos)})
            for name, value in {"observations": observations, "rewards": rewards, **values}.items():
                finite = bool(torch.as_tensor(value).isfinite().all())
                self.check(made, finite or name in ("test_loss", "test_accuracy"), f"{name} is not finite")
            self.check(made, bool((torch.as_tensor(observations).abs() <= 10).all()), "observations beyond their space")
            if env.render_mode is not None:
                env.render()

    def damaged_state(self, env: Any, made: Any) -> None:
        """Set a state with something changed in it: it is refused and nothing has changed, or it can be played."""
        before, state = env.get_state(), env.get_state()
        part = self.one_of(["metadata", "arrays"])
        name = self.one_of(getattr(state, part))
        if part == "metadata" or self.chance(0.3):
            getattr(state, part)[name] = self.one_of(NONSENSE)
        elif state.arrays[name].size:
            place = self.rng.integers(state.arrays[name].size)
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state.arrays[name].reshape(-1)[place] = self.one_of([-1, 0, 1, 3, 100, 10**6])
        env_before = _bits(before)
        if self.attempt("set_state", (made, name), lambda: env.set_state(state) or True) is None:
            self.check((made, name), _bits(env.get_state()) == env_before, "refused, and yet changed")
        env.set_state(before)

    def check(self, made: Any, right: bool, otherwise: str) -> None:
        """A fault unless something is right."""
        if not right:
            self.fault("play", made, otherwise)


def flat(info: dict[str, Any]) -> dict[str, Any]:
    """An info with the entries of the dicts in it, but for Gymnasium's masks, in their place."""
    parts = {name: value if isinstance(value, dict) else {name: value} for name, value in info.items()}
    return {name: value for part in parts.values() for name, value in part.items() if not name.startswith("_")}


def _bits(state: Any) -> Any:
    arrays = {name: (array.dtype, array.shape, array.tobytes()) for name, array in state.arrays.items()}
    return arrays, json.dumps(state.metadata, sort_keys=True)


def _too_large(arguments: dict[str, Any]) -> bool:
    """Whether the arguments are right, and yet more than can be played: as many runs, or as long episodes."""
    sizes = (arguments.get(name) for name in ("num_envs", "epochs", "batches_per_action"))
    return any(isinstance(size, int) and 1_000 < size < 2**31 for size in sizes) or "mnist" in str(
        arguments.get("dataset")
    ).replace("mnist5k", "")


def _short(value: Any) -> str:
    try:
        return " ".join(repr(value).split())[:600]
    except Exception:
        return f"a {type(value).__name__}"


def fuzz(steps: int, seed: int) -> Fuzzer:
    """Play until at least so many steps are counted."""
    with own_cache(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's, of wrong arguments
        fuzzer = Fuzzer(seed, Path(folder))
        told = 0
        while fuzzer.steps < steps:
            fuzzer.play_one()
            if fuzzer.steps >= told + 50_000:
                told = fuzzer.steps
                print(f"{told:,} steps, {time.process_time():.0f} s of CPU, {fuzzer.tried['make']:,} tried", flush=True)
    return fuzzer


def main() -> None:
    """Fuzz, and say what was counted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="rows of vector environments count each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.process_time()
    fuzzer = fuzz(arguments.steps, arguments.seed)
    print(f"{fuzzer.steps:,} steps in {time.process_time() - started:.0f} s of CPU; {len(fuzzer.faults)} faults")
    print(", ".join(f"{what} {count:,}" for what, count in sorted(fuzzer.tried.items())))
    sys.exit(bool(fuzzer.faults))


if __name__ == "__main__":
    main()
