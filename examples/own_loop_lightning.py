"""A controller sets the learning rate of a training with Lightning.

python -m pip install "qan-gym[lightning]" && python examples/own_loop_lightning.py --epochs 5
"""

import argparse

import lightning.pytorch as lightning
import torch
from own_loop import digits, print_test
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from qan_agents.controllers.lightning import LearnedLRCallback


class Classifier(lightning.LightningModule):
    """A perceptron; it configures no scheduler."""

    def __init__(self) -> None:
        """With 64 units."""
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        """The loss of a mini-batch."""
        images, labels = batch
        return cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Its learning rate is the controller's to set."""
        return torch.optim.AdamW(self.parameters())


def main() -> None:
    """Train on 4,000 digits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()

    lightning.seed_everything(0)
    data, model = TensorDataset(*digits("train")), Classifier()
    callback = LearnedLRCallback(batch_size=32, dataset_size=len(data), num_classes=10)
    plain = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(max_epochs=arguments.epochs, callbacks=[callback], **plain)
    trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True))
    print_test(model.network)
    print(f"last learning rate {callback.scheduler.get_last_lr()[0]:.2g}")


if __name__ == "__main__":
    main()
