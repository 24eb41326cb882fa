"""`LearnedLR` in Lightning, transformers, Accelerate and `torch.distributed`: as in a plain loop, and resumed."""

import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from test_learned_lr import FACTS, Loop, made
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from qan_agents.controllers import LearnedLR

STEPS, DATA = 50, 400


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(DATA, 6, generator=generator), torch.randint(0, 3, (DATA,), generator=generator))


def plain(accumulate: int = 1, make=lambda params: SGD(params, lr=0.1, momentum=0.9), name: str = "sgd") -> LearnedLR:
    """The same training in a loop: 50 updates of 8 examples."""
    net, images_labels = network(), data()
    optimizer = make(net.parameters())
    scheduler = LearnedLR(optimizer, STEPS, controller=made(name), **FACTS)
    for number, (images, labels) in enumerate(DataLoader(images_labels, batch_size=8 // accumulate), start=1):
        loss = cross_entropy(net(images), labels)
        (loss / accumulate).backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step(loss)
    return scheduler


def assert_same_history(one, other, rtol: float = 1e-5) -> None:
    """The decisions are the same, but for rounding."""
    for name in ("step", "learning_rate", "action"):
        np.testing.assert_allclose([x[name] for x in one], [x[name] for x in other], rtol=rtol, atol=1e-6, err_msg=name)


# --- Lightning ------------------------------------------------------------------------------------------------------


@pytest.fixture
def lightning():
    """The library, quiet."""
    pytest.importorskip("lightning.pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch

        yield lightning.pytorch


def test_the_callback_says_what_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "qan_agents.controllers.lightning", raising=False)
    with pytest.raises(ImportError, match=r"missing: python -m pip install .*\[lightning\]"):
        importlib.import_module("qan_agents.controllers.lightning")


def lightning_training(lightning, folder, accumulate=1, stop=None, checkpoint=None, rates=None):
    """A `Trainer` that writes a checkpoint after every update, and may stop early."""
    from qan_agents.controllers.lightning import LearnedLRCallback

    images, labels = data().tensors

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, number):
            if rates is not None:
                rates.append(self.optimizers().param_groups[0]["lr"])
            if stop is not None and self.global_step == stop:
                raise KeyError("stopped")
            places = slice(number * len(batch[0]), (number + 1) * len(batch[0]))  # a resumed loader begins anew
            return cross_entropy(self.net(images[places]), labels[places])

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=0.1, momentum=0.9)

    callback = LearnedLRCallback(controller=made(), **FACTS)
    every = lightning.callbacks.ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=1)
    every.CHECKPOINT_EQUALS_CHAR = "-"
    trainer = lightning.Trainer(
        max_epochs=2, limit_train_batches=STEPS * accumulate // 2, accumulate_grad_batches=accumulate, logger=False,
        callbacks=[callback, every], accelerator="cpu", devices=1, enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    loader = DataLoader(data(), batch_size=8 // accumulate)
    trainer.fit(Module(), loader, ckpt_path=checkpoint)
    return callback


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_counts_updates(lightning, tmp_path, accumulate):
    """Not epochs, nor mini-batches; the last loss of a mini-batch is whole where they accumulate."""
    callback = lightning_training(lightning, tmp_path, accumulate)
    assert callback.scheduler.last_epoch == callback.scheduler.total_steps == STEPS
    losses = [record["loss"] for record in callback.scheduler.history[1:]]
    assert all(0.5 < loss < 3 for loss in losses)
    half = plain(accumulate).history[:13]  # the second epoch repeats the first half of the data
    assert_same_history(callback.scheduler.history[:13], half)


@pytest.mark.slow
def test_lightning_resumes(lightning, tmp_path):
    """From a checkpoint in the middle of an action, bit for bit."""
    whole, first, second = [], [], []
    callback = lightning_training(lightning, tmp_path / "whole", rates=whole)
    with pytest.raises(KeyError):
        lightning_training(lightning, tmp_path / "parts", stop=21, rates=first)
    (checkpoint,) = (tmp_path / "parts").glob("*.ckpt")
    resumed = lightning_training(lightning, tmp_path / "more", checkpoint=checkpoint, rates=second)
    assert first[:-1] + second == whole
    assert resumed.scheduler.history == callback.scheduler.history


# --- transformers ---------------------------------------------------------------------------------------------------


def trainer_of(folder, accumulate=1, stop=None):
    """A `Trainer` of a model that says its loss."""
    transformers = pytest.importorskip("transformers")
    from qan_agents.controllers.transformers import with_learned_lr

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, images, labels):
            logits = self.net(images)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == stop:
                control.should_training_stop = True

    model = Model()
    pair = with_learned_lr(
        model, SGD(model.parameters(), lr=0.1, momentum=0.9), STEPS, accumulate=accumulate, controller=made(), **FACTS
    )
    arguments = transformers.TrainingArguments(
        output_dir=folder, max_steps=STEPS, per_device_train_batch_size=8 // accumulate, report_to=[], use_cpu=True,
        gradient_accumulation_steps=accumulate, save_steps=7, max_grad_norm=0, disable_tqdm=True, logging_steps=1000,
        train_sampling_strategy="sequential", dataloader_pin_memory=False,
    )  # fmt: skip
    images, labels = data().tensors
    rows = [{"images": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, optimizers=pair, callbacks=[Stop()] if stop else []
    )


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_of_transformers_makes_the_same_training(tmp_path, accumulate):
    """As a plain loop."""
    trainer = trainer_of(tmp_path, accumulate)
    trainer.train()
    assert trainer.lr_scheduler.last_epoch == STEPS
    assert_same_history(trainer.lr_scheduler.history, plain(accumulate).history)


@pytest.mark.slow
def test_the_trainer_of_transformers_resumes(tmp_path):
    """From its own checkpoint, in the middle of an action."""
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    trainer_of(tmp_path / "parts", stop=23).train()
    resumed = trainer_of(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-21"))
    assert resumed.lr_scheduler.history == whole.lr_scheduler.history


# --- Accelerate -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_accelerate_accumulates_and_resumes(tmp_path):
    """With the optimizer that it has wrapped, and a state of its own writing."""
    accelerate = pytest.importorskip("accelerate")

    def play(stop=None, load=False):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        net, optimizer, loader = accelerator.prepare(
            (net := network()), AdamW(net.parameters(), lr=0.1), DataLoader(data(), batch_size=4)
        )
        scheduler = LearnedLR(optimizer, STEPS, controller=made("adamw"), **FACTS)
        accelerator.register_for_checkpointing(scheduler)
        if load:
            accelerator.load_state(str(tmp_path))
        begin = 2 * scheduler.last_epoch
        for number, (images, labels) in enumerate(loader):
            if number < begin:
                continue
            if number == stop:
                accelerator.save_state(str(tmp_path))
                return scheduler
            with accelerator.accumulate(net):
                loss = cross_entropy(net(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step(loss)
                optimizer.zero_grad()
        return scheduler

    whole = play()
    assert whole.last_epoch == STEPS
    assert_same_history(whole.history, plain(2, lambda params: AdamW(params, lr=0.1), "adamw").history)
    play(stop=46)
    assert play(load=True).history == whole.history


# --- processes ------------------------------------------------------------------------------------------------------

PROCESS = """
import json, sys
import torch
sys.path.insert(0, sys.argv[3])
from test_learned_lr_adapters import FACTS, LearnedLR, SGD, cross_entropy, data, made, network
from torch import distributed
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
net = torch.nn.parallel.DistributedDataParallel(network())
optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
scheduler = LearnedLR(optimizer, 50, controller=made(), **FACTS)
images, labels = data().tensors
rates, half = [], None
for number in range(50):
    if number == 23:
        half = scheduler.state_dict() if rank == 0 else None
        handed = [half]
        distributed.broadcast_object_list(handed, src=0)  # both go on from what rank 0 has saved
        scheduler = LearnedLR(optimizer, 99, controller=made(), **FACTS)
        scheduler.load_state_dict(handed[0])
    rates.append(optimizer.param_groups[0]["lr"])
    places = slice(8 * number + 4 * rank, 8 * number + 4 * rank + 4)
    loss = cross_entropy(net(images[places]), labels[places])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    shared = loss.detach().clone()
    distributed.all_reduce(shared)
    scheduler.step(shared / 2 if number != 40 or rank == 0 else float("nan"))
print(json.dumps([rates, scheduler.history]))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_hear_the_first(tmp_path):
    """Their rates are the same, and those of one process with both halves.

    Also when they are resumed, and where a loss is not finite in the second alone.
    """
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-c", PROCESS]
    processes = [
        subprocess.Popen(
            [*command, str(rank), tmp_path / "store", tests], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    outputs = [one.communicate(timeout=300) for one in processes]
    assert all(one.returncode == 0 for one in processes), outputs
    (rates, history), (others, _) = (json.loads(output.splitlines()[-1]) for output, _ in outputs)
    assert rates == others
    assert_same_history(history, plain().history, rtol=1e-4)


def test_wrapped_optimizers_are_unwrapped():
    """Accelerate's and Lightning's have the optimizer inside."""

    class Wrapped(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    loop = Loop()
    scheduler = LearnedLR(Wrapped(loop.optimizer), 50, controller=made(), **FACTS)
    assert scheduler.optimizer is loop.optimizer
