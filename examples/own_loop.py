"""A controller sets the learning rate of a training loop of your own: no environment, no tuning.

python examples/own_loop.py --epochs 5 --optimizer sgd
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qan_agents.controllers import LearnedLR
from qan_gym.data.datasets import load_dataset

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01),
}


def digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The images that come with the package, (n, 1, 28, 28) in [0, 1], and their labels."""
    part = getattr(load_dataset("mnist5k"), split)
    return torch.tensor(part.images, dtype=torch.float32) / 255, torch.tensor(part.labels, dtype=torch.int64)


def print_test(network: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """What it makes of the test digits; it takes images and gives logits (n, 10)."""
    images, labels = digits("test")
    with torch.no_grad():
        logits = network(images)
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    print(f"test loss {cross_entropy(logits, labels):.4f}, accuracy {accuracy:.1%}")


def main() -> None:
    """Train a small convolutional network on 4,000 digits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    parser.add_argument("--plot", help="where to write a picture of what the controller did")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    images, labels = digits("train")
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )
    optimizer = OPTIMIZERS[arguments.optimizer](network.parameters())
    batches = len(images) // arguments.batch_size
    scheduler = LearnedLR(
        optimizer,
        total_steps=arguments.epochs * batches,
        batch_size=arguments.batch_size,
        dataset_size=len(images),
        num_classes=10,
    )
    for epoch in range(arguments.epochs):
        for places in torch.randperm(len(images))[: batches * arguments.batch_size].split(arguments.batch_size):
            loss = cross_entropy(network(images[places]), labels[places])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
        print(f"epoch {epoch + 1}: training loss {loss.item():.4f}, learning rate {scheduler.get_last_lr()[0]:.2g}")

    print_test(network)
    if arguments.plot:
        scheduler.plot().savefig(arguments.plot)


if __name__ == "__main__":
    main()
