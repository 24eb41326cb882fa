"""Trainings that are killed and resumed, under LearnedLR and under two of PyTorch's schedulers.

A training of 50 updates writes a checkpoint after every third one. It is stopped again and again, in turn by SIGKILL at
a random time and by an exception in a random update, and resumed by a new process from its last checkpoint; half of the
resumed ones build the scheduler before the optimizer's state is loaded, half after. A trace is the learning rates of
every update. Where that of a resumed process is not that of the uninterrupted training, the training is given up. Other
trainings follow, until there were 50 stops. The table says after how many of them the trace was equal bit for bit,
whether the scheduler has counted the updates that were made, and how often the step of the uninterrupted training was
compiled.

    python benchmarks/scheduler_torture.py --out benchmarks/results/scheduler-torture.md
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import logging
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from qan_agents.controllers import LearnedLR

STEPS, BATCH, CLASSES, EXAMPLES = 50, 8, 3, 400
FACTS = {"batch_size": BATCH, "dataset_size": EXAMPLES, "num_classes": CLASSES}
EVERY = 3  # updates from one checkpoint to the next; an action of the controller has 2
SKIPPED = (5, 17, 18, 31)  # mini-batches whose update a gradient scaler skips
SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "LearnedLR": lambda optimizer: LearnedLR(optimizer, STEPS, **FACTS),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1, cycle_momentum=False),
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, STEPS),
}
Trace = dict[int, list[float]]


class Stop(Exception):
    """The exception that ends a training."""


def network() -> nn.Module:
    """A perceptron with initial weights that are always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))


@functools.cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Random examples."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(EXAMPLES, 6, generator=generator), torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)


class Run:
    """One process of a training: its folder, when it is to stop, and what it has written."""

    def __init__(self, mode: str, scheduler: str, folder: Path, stop: int | None, late: bool) -> None:
        self.mode, self.make, self.folder, self.stop, self.late = mode, SCHEDULERS[scheduler], folder, stop, late
        self.learned = scheduler == "LearnedLR"
        self.counter: Any = None
        self.trace = os.open(folder / "trace", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def record(self, number: int, optimizer: Optimizer) -> None:
        """The learning rates of an update; stops in the middle of it where it is to."""
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        os.write(self.trace, struct.pack("<qdd", number, rates[0], rates[-1]))
        if number == self.stop:
            raise Stop

    def finish(self, scheduler: LRScheduler, updates: int) -> None:
        """What the table needs to know."""
        frames = 0 if self.counter is None else self.counter.frame_count
        found = {"counted": scheduler.last_epoch, "made": updates, "frames": frames}
        (self.folder / "done").write_text(json.dumps(found))


def traced(folder: Path) -> Trace:
    """Of all processes that have written to a folder; the last one to make an update wins."""
    content = (folder / "trace").read_bytes()
    size = struct.calcsize("<qdd")
    return {number: rates for number, *rates in struct.iter_unpack("<qdd", content[: len(content) // size * size])}


# --- loops of one's own ---------------------------------------------------------------------------------------------


def loop(run: Run, rank: int = 0, world: int = 1) -> None:
    """One of the modes that need no library, from its last checkpoint on."""
    net: Any = network()
    optimizer = SGD(groups(run.mode, net), lr=torch.tensor(0.1) if run.mode == "compiled step" else 0.1, momentum=0.9)
    scheduler = None if run.late else run.make(optimizer)
    file = run.folder / "checkpoint.pt"
    saved = torch.load(file, weights_only=True) if file.exists() else None
    if saved:
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
    scheduler = scheduler or run.make(optimizer)
    if saved:
        scheduler.load_state_dict(saved["scheduler"])
    if world > 1:
        net = nn.parallel.DistributedDataParallel(net)
    step: Callable[[], Any] = optimizer.step
    if run.mode == "compiled step":
        from torch._dynamo.testing import CompileCounter

        run.counter = CompileCounter()
        step = torch.compile(optimizer.step, backend=run.counter)
    accumulate = 2 if run.mode == "accumulation" else 1
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=run.mode == "skipped by a scaler")
    number, updates = (saved["number"], saved["updates"]) if saved else (0, 0)
    images, labels = data()
    while updates < STEPS:
        size = BATCH // accumulate // world
        places = (size * (world * number + rank) + torch.arange(size)) % EXAMPLES
        with torch.autocast("cpu", torch.bfloat16, enabled=run.mode == "bfloat16"):
            loss = cross_entropy(net(images[places]), labels[places])
        scaler.scale(loss / accumulate).backward()
        number += 1
        last = number % accumulate == 0
        skipped = scaler.is_enabled() and number in SKIPPED
        if last:
            run.record(updates, optimizer)
            if skipped:
                next(iter(net.parameters())).grad.fill_(torch.inf)
            if scaler.is_enabled():
                scaler.step(optimizer)
                scaler.update()
            else:
                step()
            optimizer.zero_grad()
            updates += not skipped
        if run.learned:
            scheduler.step(loss)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(ValueError):  # OneCycleLR raises after its last step
                    scheduler.step()
        if last and updates % EVERY == 0 and rank == 0:
            inner = net.module if world > 1 else net
            parts = {"net": inner, "optimizer": optimizer, "scheduler": scheduler}
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state | {"number": number, "updates": updates}, run.folder / "aside.pt")
            (run.folder / "aside.pt").replace(file)
    if rank == 0:
        run.finish(scheduler, updates)


def groups(mode: str, net: nn.Module) -> Any:
    """The parameters, in two groups where that is the mode."""
    if mode != "parameter groups":
        return net.parameters()
    parameters = list(net.parameters())
    return [{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:], "lr": 0.02}]


def two_processes(run: Run) -> None:
    """The loop under DistributedDataParallel, in this process and a child."""
    from torch import distributed

    meeting = run.folder / f"meeting-{os.getpid()}"
    child = os.fork()
    rank = int(child == 0)
    if rank:
        run.trace = os.open(os.devnull, os.O_WRONLY)
        parent_dies()
    try:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
        loop(run, rank, 2)
        distributed.barrier()
    finally:
        if rank:
            os._exit(0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def parent_dies() -> None:
    """End with the parent, which may be killed (Linux)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


# --- libraries ------------------------------------------------------------------------------------------------------


def lightning(run: Run) -> None:
    """In Lightning, from its own checkpoints."""
    import lightning.pytorch as library

    from qan_agents.controllers.lightning import LearnedLRCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    images, labels = data()

    class Module(library.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            places = slice(BATCH * number, BATCH * (number + 1))
            run.record(self.global_step, self.trainer.optimizers[0])
            return cross_entropy(self.net(images[places]), labels[places])

        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9)
            if run.learned:
                return optimizer
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": run.make(optimizer), "interval": "step"}}

    callback = LearnedLRCallback(**FACTS)
    checkpoints = library.callbacks.ModelCheckpoint(run.folder, filename="last", every_n_train_steps=EVERY)
    checkpoints.STARTING_VERSION, callbacks = 1, [checkpoints, *([callback] if run.learned else [])]
    trainer = library.Trainer(
        max_epochs=1, limit_train_batches=STEPS, logger=False, callbacks=callbacks, accelerator="cpu", devices=1,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    there = sorted(run.folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    trainer.fit(
        Module(), DataLoader(TensorDataset(*data()), batch_size=BATCH), ckpt_path=there[-1] if there else None,
        weights_only=True,
    )  # fmt: skip
    scheduler = callback.scheduler if run.learned else trainer.lr_scheduler_configs[0].scheduler
    run.finish(scheduler, trainer.global_step)


def transformers(run: Run) -> None:
    """In the Trainer of transformers, from its own checkpoints."""
    import transformers as library

    from qan_agents.controllers.transformers import with_learned_lr

    library.logging.set_verbosity_error()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": cross_entropy(self.net(images), labels)}

    class Recorder(library.TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **there: Any) -> None:
            run.record(state.global_step, there["optimizer"])

    model = Model()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    pair: Any = with_learned_lr(model, optimizer, STEPS, **FACTS) if run.learned else (optimizer, run.make(optimizer))
    arguments = library.TrainingArguments(
        output_dir=str(run.folder), max_steps=STEPS, per_device_train_batch_size=BATCH, report_to=[], use_cpu=True,
        save_steps=EVERY, save_total_limit=3, max_grad_norm=0, disable_tqdm=True, logging_steps=1000,
        train_sampling_strategy="sequential", dataloader_pin_memory=False,
    )  # fmt: skip
    rows = [{"images": image, "labels": label} for image, label in zip(*data(), strict=True)]
    trainer = library.Trainer(model=model, args=arguments, train_dataset=rows, optimizers=pair, callbacks=[Recorder()])
    whole = [path for path in run.folder.glob("checkpoint-*") if complete(path / "trainer_state.json")]
    last = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    run.finish(trainer.lr_scheduler, trainer.state.global_step)


def complete(path: Path) -> bool:
    """Whether a JSON file was written to its end; the Trainer writes it last."""
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


MODES: dict[str, Callable[[Run], None]] = {
    "plain": loop,
    "accumulation": loop,
    "bfloat16": loop,
    "skipped by a scaler": loop,
    "parameter groups": loop,
    "compiled step": loop,
    "two processes": two_processes,
    "Lightning": lightning,
    "transformers": transformers,
}


# --- torture --------------------------------------------------------------------------------------------------------


def play(mode: str, scheduler: str, folder: Path, stop: int | None, late: bool, kill_after: float | None) -> bool:
    """One process of a training, a child of this one; whether it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                MODES[mode](Run(mode, scheduler, folder, stop, late))
            status = 0
        except Stop:
            status = 3
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        os._exit(status)
    status = None if kill_after is None else ended_within(child, kill_after)
    if status is None:
        if kill_after is not None:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
        raise RuntimeError(f"{mode} under {scheduler} has failed")
    return status == 0


def ended_within(child: int, seconds: float) -> int | None:
    """The status of a child that ends in this time; None: it has not."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        there, status = os.waitpid(child, os.WNOHANG)
        if there:
            return status
        time.sleep(0.005)
    return None


def torture(mode: str, scheduler: str, instants: int, rng: random.Random) -> dict[str, Any]:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        assert play(mode, scheduler, folder, None, False, None)
        duration = time.perf_counter() - begin
        wanted, facts = traced(folder), json.loads((folder / "done").read_text())
    stops = equal = 0
    while stops < instants:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            plan = [(number % 2 == 0, number % 4 >= 2) for number in range(stops, instants)]
            more, right = stopped_training(mode, scheduler, Path(name), wanted, plan, duration, rng)
        stops, equal = stops + more, equal + right
    return {"mode": mode, "scheduler": scheduler, "equal": equal, "instants": instants, **facts}


def stopped_training(
    mode: str, scheduler: str, folder: Path, wanted: Trace, plan: list[tuple[bool, bool]], duration: float,
    rng: random.Random,
) -> tuple[int, int]:  # fmt: skip
    """A training that is stopped and resumed until it ends or its trace is wrong.

    Args:
        plan: of each stop, whether it is by SIGKILL, and whether the resumed process builds its scheduler late.
        duration: seconds of the uninterrupted training.

    Returns:
        The stops that were made, and those after which the trace was that of the uninterrupted training.
    """
    stops = equal = size = reached = 0
    while True:
        stop, after = None, None
        if stops < len(plan) and plan[stops][0]:
            after = rng.uniform(0, duration)
        elif stops < len(plan):
            stop = reached + rng.randrange(STEPS // 5)
        ended = play(mode, scheduler, folder, stop, stops > 0 and plan[stops - 1][1], after)
        before, size = size, (folder / "trace").stat().st_size if (folder / "trace").exists() else 0
        if size > before or ended:  # else the process has made no update: the next one shows how this stop went
            trace = traced(folder)
            if any(wanted.get(at) != found for at, found in trace.items()) or (ended and len(trace) < len(wanted)):
                return stops, equal
            equal, reached = stops, max(trace)
        if ended:
            return stops, equal
        stops += 1


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| training | " + " | ".join(SCHEDULERS) + " |", "| --- |" + " --- |" * len(SCHEDULERS)]
    for mode in MODES:
        cells = []
        for name in SCHEDULERS:
            found = [row for row in rows if (row["mode"], row["scheduler"]) == (mode, name)]
            cells += [cell(row) for row in found] or ["-"]
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any]) -> str:
    """Equal traces, what was counted, and compilations."""
    text = f"{row['equal']}/{row['instants']} equal; {row['counted']} steps for {row['made']} updates"
    return text + (f"; {row['frames']} compilations" if row["frames"] else "")


def warm_up() -> None:
    """Import here what a training imports on the way, so that no child has to."""
    folder = Path(tempfile.mkdtemp())
    with contextlib.suppress(Stop):
        loop(Run("compiled step", "LearnedLR", folder, 3, False))
    shutil.rmtree(folder)


def main() -> None:
    """Torture, and write the table after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    parser.add_argument("--instants", type=int, default=50)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warm_up()
    rows: list[dict[str, Any]] = []
    for mode in arguments.modes:
        if mode in ("Lightning", "transformers"):  # imported once, and not in every child
            __import__("lightning.pytorch" if mode == "Lightning" else "transformers")
        for scheduler in arguments.schedulers:
            rows.append(torture(mode, scheduler, arguments.instants, random.Random(0)))
            print(mode, scheduler, cell(rows[-1]), flush=True)
            if arguments.out:
                arguments.out.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
