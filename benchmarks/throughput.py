"""Speed of the environments, beside a textbook PyTorch loop, AsyncVectorEnv and DACBench.

    python benchmarks/throughput.py [--device cpu|cuda] [--json FILE]

A step trains the CNN of `QanLR-MNIST5k-v1` on one mini-batch of 10. The contestants take turns within each round, and a
ratio is the median over the rounds of the ratio within a round, so that a machine that is slow for a while is slow for
all of them.

- `textbook_over_env`: a textbook PyTorch training step of the same CNN (nn.Module, optim.SGD, tensors in memory,
  `loss.item()`), over `env.step`; on CPU both on one thread.
- `textbook_over_vector`: the same over an environment step of N = 16 at once (CUDA: 1,024), with one thread, and on CPU
  also with two.
- `textbook_over_minibatch`: a textbook step of 128 images over `env.step` of the mini-batch game; on one thread.
- `vector_speedup`: environment steps per second at N = 16 (CUDA: 1,024) over N = 1.
- `async_over_vector`: time per environment step of Gymnasium's AsyncVectorEnv with N = 16 processes of one thread
  each, over the vector environment's (CPU only).
- `floor_share`: the time that the step's matrix products alone need at this machine's measured rate, over the measured
  time per environment step of the vector environment.
- `dacbench_over_env`: DACBench's SGDEnv on the same CNN, data and batch size, over `env.step`, both on MNIST; where
  dacbench is installed and MNIST is there.
- `shares`: where the native engine trains, the shares of `env.step` that are forward pass, backward pass and update in
  the kernels, and the bookkeeping around them; and the time of an evaluation on 500 images.
- a table over N: steps per second, memory per environment. A picture of it is written beside the JSON.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qan_gym.core.engine import engine_here
from qan_gym.data.datasets import data_root  # and registers the environments
from qan_gym.data.downloads import missing

ENV = "QanLR-MNIST5k-v1"
MINIBATCH = "QanMinibatch-MNIST5k-v1"
ONE_BATCH = {"batches_per_action": 1}
KEEP = 2
TABLE = (1, 4, 16, 64, 256, 1024, 4096)
NUM_ENVS = {"cpu": 16, "cuda": 1024}  # of the vector environment in the ratios

Step = Callable[[], Any]


# --- contestants ----------------------------------------------------------------------------------------------------


class Textbook(nn.Module):
    """The CNN as an nn.Module: tanh, then max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 32, 5), nn.Tanh(), nn.MaxPool2d(3)),
            *(nn.Conv2d(32, 64, 5), nn.Tanh(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(nn.Linear(256, 200), nn.Tanh(), nn.Linear(200, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images).flatten(1))


def textbook_step(images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> Step:
    """One training step of a textbook loop per call."""
    model = Textbook().to(images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    order, position = torch.randperm(len(labels)), 0

    def step() -> None:
        nonlocal order, position
        if position + batch_size > len(labels):
            order, position = torch.randperm(len(labels)), 0
        batch = order[position : position + batch_size]
        position += batch_size
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def env_step(env_id: str, device: str) -> Step:
    """One step of the single environment per call."""
    env = gym.make(env_id, device=device, **ONE_BATCH)
    env.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(KEEP)
        if terminated or truncated:
            env.reset()

    return step


def vector_step(num_envs: int, device: str = "cpu", threads: int | None = None, **kwargs: Any) -> Step:
    """One step of N environments per call; threads: of the engine; None: PyTorch's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    env = gym.make_vec(ENV, num_envs=num_envs, **kwargs, **ONE_BATCH, device=device)
    torch.set_num_threads(before)
    env.reset(seed=0)
    actions: Any = np.full(num_envs, KEEP)
    if kwargs.get("output") == "torch":
        actions = torch.from_numpy(actions).to(device)
    return lambda: env.step(actions)


def async_step(num_envs: int) -> Step:
    """One step of N environments in N processes per call."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that are started now
    try:
        return vector_step(num_envs, vectorization_mode="async", vector_kwargs={"context": "spawn"})
    finally:
        del os.environ["OMP_NUM_THREADS"]


def dacbench_step(root: Path) -> Step:
    """One mini-batch of DACBench's SGDEnv, in step mode, per call: the same CNN, MNIST, split and batch size."""
    from dacbench.benchmarks.sgd_benchmark import SGDBenchmark
    from dacbench.envs import SGDInstance

    def model() -> nn.Module:
        return nn.Sequential(nn.ZeroPad2d(2), Textbook(), nn.LogSoftmax(dim=1))

    benchmark = SGDBenchmark()
    instance = SGDInstance(model, "adamw", {}, str(root), "MNIST", 10, 1.0, 55 / 60, seed=0)
    benchmark.config |= {"instance_set": {0: instance}, "epoch_mode": False, "cutoff": 1e9}
    env = benchmark.get_environment()
    env.reset(seed=0)
    return lambda: env.step(0.001)


# --- measuring ------------------------------------------------------------------------------------------------------


def milliseconds(step: Step, calls: int, device: str) -> float:
    """Time of a call, over a number of calls."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    wait_for(device)
    return (time.perf_counter() - start) / calls * 1e3


def wait_for(device: str) -> None:
    """Wait until the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


class Contest:
    """Contestants that take turns within each round.

    Attributes:
        times: by name, milliseconds per environment step, one per round.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.entries: dict[str, tuple[Step, int, int, int]] = {}
        self.times: dict[str, list[float]] = {}

    def enter(self, name: str, step: Step, envs: int = 1, threads: int = 1, calls: int = 60) -> None:
        """Add a contestant.

        Args:
            name: of the contestant.
            step: what is measured.
            envs: environments that a call steps.
            threads: that a call may use.
            calls: in a round.
        """
        self.entries[name] = (step, envs, threads, calls)
        self.times[name] = []

    def play(self, rounds: int) -> None:
        """Measure; the first round is for warming up and does not count."""
        before = torch.get_num_threads()
        for number in range(rounds + 1):
            for name, (step, envs, threads, calls) in self.entries.items():
                torch.set_num_threads(threads)
                taken = milliseconds(step, calls, self.device) / envs
                if number > 0:
                    self.times[name].append(taken)
        torch.set_num_threads(before)

    def median(self, name: str) -> float:
        """Milliseconds per environment step."""
        return statistics.median(self.times[name])

    def ratio(self, slow: str, fast: str) -> dict[str, float]:
        """Median and quartiles of the ratios within the rounds."""
        ratios = [one / other for one, other in zip(self.times[slow], self.times[fast], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return {"median": middle, "low": low, "high": high}


def matmul_rate(device: str) -> Callable[[], float]:
    """Floating-point operations per second of a large product."""
    size = 1024 if device == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device)
    return lambda: 2 * size**3 / (milliseconds(lambda: a @ b, 3, device) / 1e3)


def operations(device: str) -> int:
    """Floating-point operations in the matrix products of an environment step, as PyTorch computes it."""
    env = gym.make(ENV, device=device, engine="torch", **ONE_BATCH)
    env.reset(seed=0)
    with FlopCounterMode(display=False) as counter:
        env.step(KEEP)
    return counter.get_total_flops()


def resident(num_envs: int) -> int:
    """Bytes that a process with N environments holds after some steps; Linux."""
    step = vector_step(num_envs)
    for _ in range(3):
        step()
    return resident_now()


def resident_now() -> int:
    """Bytes that this process holds; Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_per_env(num_envs: int, device: str) -> float | None:
    """Bytes that one more environment takes; None where it cannot be measured."""
    if num_envs == 1:
        return None
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step = vector_step(num_envs, device, output="torch")
        for _ in range(4):
            step()
        return (torch.cuda.max_memory_allocated() - before) / num_envs
    if not Path("/proc/self/statm").exists():
        return None
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        one, many = (pool.apply(resident, (count,)) for count in (1, num_envs))
    return (many - one) / (num_envs - 1)


def table(device: str, largest: int) -> list[dict[str, Any]]:
    """Steps per second and memory per environment over N."""
    rows = []
    for num_envs in (n for n in TABLE if n <= largest):
        step = vector_step(num_envs, device, output="torch" if device == "cuda" else "numpy")
        milliseconds(step, 4, device)
        calls = max(4, 256 // num_envs)
        rate = statistics.median(1e3 * num_envs / milliseconds(step, calls, device) for _ in range(5))
        del step
        rows.append({"n": num_envs, "steps_per_second": rate, "bytes_per_env": memory_per_env(num_envs, device)})
        memory = rows[-1]["bytes_per_env"]
        print(f"N = {num_envs:5d}: {rate:9.0f} steps/s" + (f", {memory / 2**20:.2f} MiB each" if memory else ""))
    return rows


def compare(device: str, rounds: int) -> dict[str, Any]:
    """All ratios."""
    many = NUM_ENVS[device]
    single = gym.make(ENV, **ONE_BATCH).unwrapped
    images, labels = (torch.from_numpy(array).to(device) for array in single.split("train"))
    contest = Contest(device)
    contest.enter("textbook", textbook_step(images, labels, single.config.batch_size))
    contest.enter("env", env_step(ENV, device))
    contest.enter("textbook of 128", textbook_step(images, labels, 128), calls=4)
    contest.enter("mini-batch game of 128", env_step(MINIBATCH, device), calls=8)
    contest.enter("vector of 1", vector_step(1, device, threads=1))
    vector, few = f"vector of {many}", max(4, 60 // many)
    contest.enter(vector, vector_step(many, device, threads=1), envs=many, calls=few)
    if device == "cpu":
        two = f"{vector}, two threads"
        contest.enter(two, vector_step(many, device, threads=2), envs=many, threads=2, calls=few)
        contest.enter("async", async_step(many), envs=many, calls=few)
    if device == "cpu" and importlib.util.find_spec("dacbench") and not missing("mnist", data_root()):
        contest.enter("dacbench", dacbench_step(data_root()), calls=2)
        contest.enter("env on MNIST", env_step("QanLR-MNIST-v0", device))
    rate, flop = matmul_rate(device), operations(device)
    contest.play(rounds)
    floor = flop / statistics.median(rate() for _ in range(9)) * 1e3  # milliseconds
    ratios = {
        "textbook_over_env": contest.ratio("textbook", "env"),
        "vector_speedup": contest.ratio("vector of 1", vector),
        "textbook_over_vector": contest.ratio("textbook", vector),
        "textbook_over_minibatch": contest.ratio("textbook of 128", "mini-batch game of 128"),
        "floor_share": {"median": floor / contest.median(vector)},
    }
    if device == "cpu":
        ratios["textbook_over_vector_two_threads"] = contest.ratio("textbook", two)
    for slow, fast in (("async", vector), ("dacbench", "env on MNIST")):
        if slow in contest.times:
            ratios[f"{slow}_over_{fast.split()[0]}"] = contest.ratio(slow, fast)
    return {
        "milliseconds_per_step": {name: contest.median(name) for name in contest.times},
        "ratios": ratios,
        "mflop_per_step": flop / 1e6,
        "shares": shares() if device == "cpu" else None,
    }


def shares() -> dict[str, float] | None:
    """Shares of a step of the environment, and milliseconds of an evaluation; None without the native engine."""
    env = gym.make(ENV, **ONE_BATCH).unwrapped
    if env.training.parts.engine != "native":
        return None
    engine = env.training.engine
    env.reset(seed=0)
    env.step(KEEP)
    data, finite = engine.images("train"), np.zeros(1, np.uint8)
    batch = np.ascontiguousarray(env.batch_indices[:1])
    few = replace(data, images=data.images[batch[0]], labels=data.labels[batch[0]])
    loss, accuracy, gradients = np.zeros(1, np.float32), np.zeros(1, np.float32), np.zeros_like(engine.weights)
    engine.indices[:] = batch
    contest = Contest("cpu")
    contest.enter("env", lambda: env.step(KEEP))
    contest.enter("kernels", engine.on_batch)
    contest.enter("gradients", engine.kernels.training(data, engine.weights, batch, loss, finite, gradients=gradients))
    contest.enter("forward", engine.kernels.evaluation(few, engine.weights, loss, accuracy))
    held_out = engine.images("validation")
    some = replace(held_out, images=held_out.images[:500], labels=held_out.labels[:500])
    contest.enter("evaluation", engine.kernels.evaluation(some, engine.weights, loss, accuracy), calls=4)
    contest.play(6)
    env_ms, kernels, gradient, forward = map(contest.median, ("env", "kernels", "gradients", "forward"))
    return {
        "forward": forward / env_ms,
        "backward": (gradient - forward) / env_ms,
        "update": (kernels - gradient) / env_ms,
        "bookkeeping": 1 - kernels / env_ms,
        "evaluation_of_500_ms": contest.median("evaluation"),
    }


def hardware(device: str) -> str:
    """The hardware and the version of torch, in words."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Throughput over N."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot([row["n"] for row in rows], [row["steps_per_second"] for row in rows], "o-")
    axes.set(
        xscale="log", xlabel="environments in lock-step (N)", ylabel="environment steps per second", ylim=(0, None)
    )
    axes.set_xticks([row["n"] for row in rows], [f"{row['n']:,}" for row in rows])
    axes.minorticks_off()
    axes.set_title(f"{ENV}, one mini-batch of 10 per step\n{title}", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, write a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=NUM_ENVS, default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--largest", type=int, default=256, help="the largest N of the table")
    parser.add_argument("--json", type=Path, help="write the figures here, and the picture beside them")
    arguments = parser.parse_args()
    engine = engine_here() if arguments.device == "cpu" else "torch"
    found = {"hardware": hardware(arguments.device), "engine": engine, **compare(arguments.device, arguments.rounds)}
    print(f"{found['hardware']}; engine: {engine}")
    for name, value in found["milliseconds_per_step"].items():
        print(f"{name:15s} {value:8.3f} ms per environment step")
    for name, ratio in found["ratios"].items():
        spread = f" (quartiles {ratio['low']:.2f} to {ratio['high']:.2f})" if "low" in ratio else ""
        print(f"{name}: {ratio['median']:.2f}{spread}")
    for name, share in (found["shares"] or {}).items():
        print(f"{name}: {share:.2f}" if name.endswith("_ms") else f"{name}: {share:.0%} of a step")
    found["table"] = table(arguments.device, arguments.largest)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
        draw(found["table"], found["hardware"], arguments.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
