"""Your own data, network and optimizer, registered from outside the package, and played by four at once.

python examples/custom_task.py                  # on made images, of the shape of Fashion-MNIST
python examples/custom_task.py --fashion-mnist  # on the real ones, which torchvision downloads into --root
"""

import argparse
from collections.abc import Collection

import gymnasium as gym
import numpy as np
from torch import Tensor, nn

import qan_gym
from qan_gym.config import TaskConfig
from qan_gym.optimizee.optimizers import Hyperparameters

SHAPE = (28, 28)
KEEP = 2  # the action


def stripes() -> dict[str, np.ndarray]:
    """3,000 and 500 noisy images of stripes; the class is their direction, one of ten."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 3000), ("test", 500)):
        labels = rng.integers(10, size=count)
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        angle = (labels * np.pi / 10)[:, None, None]
        waves = np.sin(0.8 * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6, (count, 1, 1)))
        images = 128 + 40 * waves + rng.normal(0, 60, (count, *SHAPE))
        arrays |= {f"x_{part}": images.clip(0, 255).astype(np.uint8), f"y_{part}": labels}
    return arrays


def fashion_mnist(root: str) -> dict[str, np.ndarray]:
    """The real Fashion-MNIST, through torchvision."""
    from torchvision.datasets import FashionMNIST

    train, test = FashionMNIST(root, train=True, download=True), FashionMNIST(root, train=False, download=True)
    return {
        "x_train": train.data.numpy(),
        "y_train": train.targets.numpy(),
        "x_test": test.data.numpy(),
        "y_test": test.targets.numpy(),
    }


def small_cnn(image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """Any module does: images (B, C, H, W) in, logits (B, K) out. The agent sees its first convolution."""
    return nn.Sequential(
        nn.Conv2d(image_shape[0], 16, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, n_classes),
    )


class SignSGD:
    """w <- w - lr sign(g): one update of N networks, each with its own learning rate."""

    slots = ()  # it keeps nothing between updates

    def __init__(self, config: TaskConfig, controlled: Collection[str]) -> None:
        """config: the task; controlled: the hyperparameters that the actions change."""

    def update(self, params: dict, gradients: dict, slots: dict, hyper: Hyperparameters, step: Tensor) -> None:
        """See `qan_gym.optimizee.optimizers.Optimizer`."""
        rates = hyper.learning_rate.float()  # (N,)
        for name, value in params.items():  # (N, *shape)
            value.sub_(rates.view(-1, *[1] * (value.dim() - 1)) * gradients[name].sign())


def main() -> None:
    """Register everything, and keep the learning rate as it is for one episode of each of four networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion-mnist", action="store_true")
    parser.add_argument("--root", default="data", help="the folder of the real images")
    arguments = parser.parse_args()

    loader = (lambda: fashion_mnist(arguments.root)) if arguments.fashion_mnist else stripes
    qan_gym.register_dataset("my-data", loader)
    qan_gym.register_network("my-cnn", small_cnn)
    qan_gym.register_optimizer("my-sign-sgd", SignSGD)

    task = {"dataset": "my-data", "network": "my-cnn", "batch_size": 50, "epochs": 3, "batches_per_action": 5}
    task |= {"meta_momentum": None}  # no reference weights to train first
    for optimizer, rate in (("my-sign-sgd", 0.001), ("adamw", 0.003), ("sgd", 0.1)):
        rates = {"optimizer": optimizer, "learning_rate": rate, "learning_rate_min": rate / 10}
        envs = gym.make_vec("QanLR-MNIST5k-v1", num_envs=4, **task, **rates)
        envs.reset(seed=0)
        over = np.zeros(4, bool)
        while not over.any():
            _, _, terminations, truncations, infos = envs.step(np.full(4, KEEP))
            over = terminations | truncations
        accuracies = ", ".join(f"{accuracy:.1%}" for accuracy in infos["test_accuracy"])
        print(f"{optimizer}: test accuracy of four networks {accuracies}")


if __name__ == "__main__":
    main()
