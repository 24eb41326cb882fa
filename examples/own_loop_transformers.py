"""A controller sets the learning rate of the `Trainer` of Hugging Face's transformers.

python -m pip install "qan-gym[transformers]" && python examples/own_loop_transformers.py --steps 500
"""

import argparse
import tempfile
from typing import Any

import torch
from own_loop import digits, print_test
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from qan_agents.controllers.transformers import with_learned_lr


def rows(split: str) -> list[dict[str, Any]]:
    """Digits as the model takes them."""
    images, labels = digits(split)
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]


def main() -> None:
    """Train a small vision transformer on 4,000 digits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()

    set_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=28,
            patch_size=7, num_channels=1, num_labels=10,
        )
    )  # fmt: skip
    data = rows("train")
    optimizers = with_learned_lr(
        model,
        torch.optim.AdamW(model.parameters()),
        arguments.steps,
        batch_size=32,
        dataset_size=len(data),
        num_classes=10,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, max_steps=arguments.steps, per_device_train_batch_size=32, report_to=[], use_cpu=True,
            logging_steps=max(1, arguments.steps // 5),
        )  # fmt: skip
        Trainer(model=model, args=settings, train_dataset=data, optimizers=optimizers).train()
    model.eval()
    print_test(lambda images: model(images).logits)


if __name__ == "__main__":
    main()
