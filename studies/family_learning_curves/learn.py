"""Learning curves of four agents on the multilayer perceptrons of `QanLR-Family-v0`, on training and held-out tasks.

    python -m studies.family_learning_curves.learn sb3-ppo|sb3-dqn|ppo|dqn [--minutes 10] [--out FOLDER]
    python -m studies.family_learning_curves.learn draw [--out FOLDER]

An agent plays 64 rows of the split "train" and learns, in one thread. The clock is the CPU time of the process, without
that of the evaluations: before the training and every minute the agent plays 128 fixed tasks of the split "test"
greedily, with the same initial weights each time. Written are `AGENT-train.csv`, the mean return of the training
episodes of each quarter of a minute, and `AGENT-held-out.csv`, the return of every held-out task at every evaluation;
`draw` makes the picture and prints the table.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

import qan_gym  # noqa: F401 (registers the environments)
from qan_agents.bench.trained_agents import BudgetEndTerminates
from qan_agents.dqn import DQN, DQNConfig, EnvInterface, TensorVectorEnv
from qan_agents.dqn.training import play_on
from qan_agents.ppo import PPO, PPOConfig, PPOInterface
from qan_gym.families import DECISIONS

ROWS, HELD_OUT = 64, 128
FACTORS = [0.2, 0.6, 1.0, 1.6, 5.0]  # of the learning rate, the actions of the DQNs
EXPLORATION = 100_000  # steps until the DQNs play 5 % random actions
BLOCK = 0.25  # minutes of training whose episodes are averaged
CPU = torch.device("cpu")

Array = NDArray[Any]
Act = Callable[[Array], Array]  # observations (N, D) -> greedy actions, as the environment takes them


def make_env(split: str, rows: int, discrete: bool) -> VectorEnv[Any, Any, Any]:
    """The family's perceptrons; the end of the budget is a termination, after which no value is expected."""
    actions: dict[str, Any] = {"continuous": False, "learning_rate_factors": FACTORS} if discrete else {}
    mode = AutoresetMode.SAME_STEP
    return BudgetEndTerminates(
        gym.make_vec("QanLR-Family-v0", num_envs=rows, networks=["mlp"], split=split, autoreset_mode=mode, **actions)
    )


def held_out_returns(act: Act, discrete: bool) -> Array:
    """The returns (HELD_OUT,) of the held-out tasks."""
    env = make_env("test", HELD_OUT, discrete)
    observations, _ = env.reset(seed=0)
    returns, over = np.zeros(HELD_OUT), np.zeros(HELD_OUT, bool)
    while not over.all():
        observations, rewards, ended, _, _ = env.step(act(observations))
        returns += np.where(over, 0.0, rewards)
        over |= ended
    env.close()
    return returns


class Curves:
    """The clock of a training, and what is recorded by it."""

    def __init__(self, name: str, minutes: float, folder: Path, act: Act, discrete: bool) -> None:
        """Evaluate the untrained agent and start the clock.

        Args:
            name: of the files.
            minutes: of CPU time.
            folder: for them.
            act: the greedy agent.
            discrete: whether its actions are.
        """
        self.name, self.minutes, self.folder, self.act, self.discrete = name, minutes, folder, act, discrete
        self.held_out: list[dict[str, Any]] = []
        self.episodes: list[tuple[float, float]] = []  # minute of its end, return
        self.elsewhere = time.process_time()  # seconds that do not count
        self.evaluate()

    @property
    def minute(self) -> float:
        """CPU minutes of training so far."""
        return (time.process_time() - self.elsewhere) / 60

    def evaluate(self) -> None:
        """Play the held-out tasks, off the clock, and write the files."""
        began, minute = time.process_time(), self.minute
        returns = held_out_returns(self.act, self.discrete)
        rows = [
            {"minute": round(minute), "task": task, "return": round(value, 4)} for task, value in enumerate(returns)
        ]
        self.held_out += rows
        pd.DataFrame(self.held_out).to_csv(self.folder / f"{self.name}-held-out.csv", index=False)
        training = self.training()
        training.to_csv(self.folder / f"{self.name}-train.csv", index=False)
        last = f"{training['return'].iloc[-4:].mean():.3f}" if len(training) else "-"
        print(
            f"{self.name}: minute {minute:.2f}, {len(self.episodes)} episodes, {last}; {returns.mean():.3f}", flush=True
        )
        self.elsewhere += time.process_time() - began

    def training(self) -> pd.DataFrame:
        """Mean return and number of the training episodes of each block."""
        episodes = pd.DataFrame(self.episodes, columns=["minute", "return"])
        block = (episodes["minute"] // BLOCK + 1) * BLOCK  # its end
        blocks = episodes["return"].groupby(block.rename("minute")).agg(["count", "mean"])
        return blocks.rename(columns={"count": "episodes", "mean": "return"}).round(4).reset_index()

    def go_on(self, returns: list[float]) -> bool:
        """Record the returns of the episodes that have ended, evaluate if it is time; False: the training is over."""
        minute = self.minute
        self.episodes += [(minute, value) for value in returns]
        evaluations = len(self.held_out) // HELD_OUT
        if minute >= min(evaluations, self.minutes):
            self.evaluate()
        return minute < self.minutes


# --- Stable-Baselines3 ------------------------------------------------------------------------------------------------


def train_sb3(name: str, minutes: float, folder: Path) -> None:
    """PPO or DQN of Stable-Baselines3."""
    from stable_baselines3 import DQN as SB3DQN
    from stable_baselines3 import PPO as SB3PPO
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecMonitor

    from qan_agents.sb3 import GymnasiumVecEnv

    discrete, forever = name == "sb3-dqn", 100_000_000
    env = VecMonitor(GymnasiumVecEnv(make_env("train", ROWS, discrete)))
    if discrete:
        settings: dict[str, Any] = {
            **{"learning_rate": 5e-4, "batch_size": 256, "gamma": 1.0, "n_steps": 6, "buffer_size": 200_000},
            **{"learning_starts": 5_000, "train_freq": 1, "gradient_steps": 16, "target_update_interval": ROWS},
            **{"tau": 0.1, "exploration_fraction": EXPLORATION / forever, "exploration_final_eps": 0.05},
        }
    else:
        settings = {
            **{"learning_rate": 1e-3, "n_steps": DECISIONS, "batch_size": ROWS * DECISIONS // 4, "n_epochs": 5},
            **{"gamma": 1.0, "gae_lambda": 0.97, "target_kl": 0.03, "policy_kwargs": {"log_std_init": -1.0}},
        }
    algorithm: type[BaseAlgorithm] = SB3DQN if discrete else SB3PPO
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", **settings)
    curves = Curves(name, minutes, folder, lambda seen: model.predict(seen, deterministic=True)[0], discrete)

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            infos = self.locals["infos"]
            return curves.go_on([float(info["episode"]["r"]) for info in infos if "episode" in info])

    model.learn(forever, callback=Clock())


# --- the bundled agents -----------------------------------------------------------------------------------------------


def train_bundled(name: str, minutes: float, folder: Path) -> None:
    """The bundled PPO, whose value network also sees the parameters of the task, or the bundled DQN."""
    env = make_env("train", ROWS, discrete=name == "dqn")
    tensor_env = TensorVectorEnv(env, CPU)
    frames = tensor_env.reset(0)
    agent: PPO | DQN
    if name == "ppo":
        ppo = agent = bundled_ppo(env, tensor_env.infos)
        ppo.begin(frames, tensor_env.infos)
        curves = Curves(name, minutes, folder, lambda seen: ppo.choose(torch.from_numpy(seen))[0].numpy(), False)
    else:
        dqn = agent = bundled_dqn(env)
        dqn.begin(frames)
        curves = Curves(
            name, minutes, folder, lambda seen: dqn.values(torch.from_numpy(seen)[:, None]).argmax(1).numpy(), True
        )
    played = True
    while played:  # a step at a time: the reward comes at the end of an episode, and is its return
        played = curves.go_on([episode.total_reward for episode in play_on(agent, tensor_env, ROWS, None)])


def bundled_ppo(env: VectorEnv[Any, Any, Any], infos: dict[str, Any]) -> PPO:
    """With the hyperparameters of SB3's; infos: of the reset."""
    config = PPOConfig(
        privileged="task",
        initial_log_std=-1.0,
        steps_per_round=DECISIONS,
        gamma=1.0,
        gae_lambda=0.97,
        epochs=5,
        target_kl=0.03,
        learning_rate=1e-3,
    )
    return PPO(config, PPOInterface.of(env, config.privileged, infos))


def bundled_dqn(env: VectorEnv[Any, Any, Any]) -> DQN:
    """With the hyperparameters of SB3's, and a double one."""
    config = DQNConfig(
        double=True,
        gamma=1.0,
        n_step=6,
        target_update_interval=1,
        tau=0.1,
        learning_rate=5e-4,
        batch_size=256,
        update_every=ROWS,
        gradient_steps=16,
        learning_starts=5_000,
        buffer_size=200_000,
        exploration_steps=EXPLORATION,
    )
    return DQN(config, EnvInterface.of(env))


AGENTS = {"sb3-ppo": train_sb3, "sb3-dqn": train_sb3, "ppo": train_bundled, "dqn": train_bundled}
NAMES = {"sb3-ppo": "SB3's PPO", "sb3-dqn": "SB3's DQN", "ppo": "bundled PPO", "dqn": "bundled DQN"}
COLORS = {"sb3-ppo": "#D55E00", "sb3-dqn": "#CC79A7", "ppo": "#0072B2", "dqn": "#009E73"}  # of Okabe and Ito


# --- the picture ------------------------------------------------------------------------------------------------------


def draw(folder: Path) -> None:
    """The picture of what was recorded, and the table."""
    from matplotlib.figure import Figure

    from qan_agents.experiments.plots import LEGIBLE, legend_below, save

    nobody = held_out_returns(lambda seen: np.zeros((len(seen), 1), np.float32), discrete=False)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    print("| agent | trainings | training tasks, first and last minute | held-out tasks, before and after | gain |")
    print("| --- | --- | --- | --- | --- |")
    for name in AGENTS:
        training = pd.read_csv(folder / f"{name}-train.csv")
        held_out = pd.read_csv(folder / f"{name}-held-out.csv").pivot(index="minute", columns="task", values="return")
        training = training[training["minute"] <= held_out.index[-1]]  # the blocks that are complete
        left.plot(training["minute"], training["return"], color=COLORS[name], label=NAMES[name])
        error = held_out.sub(held_out.iloc[0], axis=1).sem(axis=1)  # of what was learned: the tasks are the same
        middle = held_out.mean(axis=1)
        right.plot(held_out.index, middle, "o-", color=COLORS[name], markersize=3, label=NAMES[name])
        right.fill_between(held_out.index, middle - error, middle + error, color=COLORS[name], alpha=0.15)
        minute = training["minute"]
        first, last = (
            float(np.average(part["return"], weights=part["episodes"]))
            for part in (training[minute <= 1], training[minute > held_out.index[-1] - 1])
        )
        print(
            f"| {NAMES[name]} | {training['episodes'].sum():,} | {first:.3f}, {last:.3f} | {middle.iloc[0]:.3f}, "
            f"{middle.iloc[-1]:.3f} | {middle.iloc[-1] - middle.iloc[0]:+.3f} ± {error.iloc[-1]:.3f} |"
        )
    print(f"nobody acts: {nobody.mean():.3f}")
    right.axhline(nobody.mean(), color=LEGIBLE, linestyle=":", label="nobody acts")
    left.set(xlabel="CPU minutes", ylabel="mean return", title="training tasks, as played while learning")
    right.set(xlabel="CPU minutes", title="128 held-out tasks, greedy; band: standard error of the gain")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    legend_below(figure, right)
    save(figure, folder / "learning_curves.png")


def main() -> None:
    """Train an agent, or draw the curves of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*AGENTS, "draw"])
    parser.add_argument("--minutes", type=float, default=10.0, help="of CPU time")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "draw":
        draw(arguments.out)
    else:
        AGENTS[arguments.what](arguments.what, arguments.minutes, arguments.out)


if __name__ == "__main__":
    main()
