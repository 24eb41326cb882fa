"""Parts of a data set, against loops over its images."""

import numpy as np
import pytest
from helpers import made_arrays

from qan_gym.data.datasets import load_dataset, make_dataset
from qan_gym.data.selection import Selection, at_resolution, select

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("mnist5k")


def test_nothing_selected_is_the_data_set(digits):
    assert select(digits, Selection()) is digits


@pytest.mark.parametrize("resolution", [1, 2, 4, 7, 14, 28])
def test_pixels_are_means_of_squares(digits, resolution):
    small, size = at_resolution(digits, resolution), 28 // resolution
    for split in SPLITS:
        assert getattr(small, split).images.shape[1:] == (1, resolution, resolution)
    for number in (0, 7, 3999):
        for row in range(resolution):
            for column in range(resolution):
                square = digits.train.images[
                    number, 0, row * size : (row + 1) * size, column * size : (column + 1) * size
                ]
                exact = int(square.astype(int).sum()) / size**2
                assert abs(int(small.train.images[number, 0, row, column]) - exact) <= 0.5


def test_classes_are_kept_and_renamed(digits):
    some = select(digits, Selection(classes=(7, 2, 5)))
    assert some.n_classes == 3
    for split in SPLITS:
        whole, part = getattr(digits, split), getattr(some, split)
        expected = [
            (image, (7, 2, 5).index(label))
            for image, label in zip(whole.images, whole.labels, strict=True)
            if label in (7, 2, 5)
        ]
        assert np.array_equal(part.labels, [label for _, label in expected])
        assert np.array_equal(part.images, np.stack([image for image, _ in expected]))


def test_images_are_chosen_by_the_seed(digits):
    """Different ones, with their own labels; another seed chooses others; held-out images are all kept."""
    labels = {image.tobytes(): label for image, label in zip(digits.train.images, digits.train.labels, strict=True)}
    chosen = [select(digits, Selection(train_size=500, data_seed=seed)) for seed in (1, 1, 2)]
    for some in chosen:
        keys = [image.tobytes() for image in some.train.images]
        assert len(set(keys)) == 500
        assert [labels[key] for key in keys] == some.train.labels.tolist()
        assert np.array_equal(some.validation.images, digits.validation.images)
        assert np.bincount(some.train.labels).min() > 25
    assert np.array_equal(chosen[0].train.images, chosen[1].train.images)
    assert not np.array_equal(chosen[0].train.images, chosen[2].train.images)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_a_share_of_the_labels_is_drawn_anew(digits, noise):
    """Of training images alone; a drawn label is the old one in one of K cases."""
    clean = select(digits, Selection(classes=tuple(range(5)), data_seed=3))
    noisy = select(digits, Selection(classes=tuple(range(5)), data_seed=3, label_noise=noise))
    assert np.array_equal(clean.train.images, noisy.train.images)
    assert np.array_equal(clean.test.labels, noisy.test.labels)
    assert np.array_equal(clean.validation.labels, noisy.validation.labels)
    changed = (clean.train.labels != noisy.train.labels).mean()
    assert abs(changed - noise * 4 / 5) < 5 * (0.25 / 2000) ** 0.5
    if noise == 1:
        counts = np.array(
            [np.bincount(noisy.train.labels[clean.train.labels == label], minlength=5) for label in range(5)]
        )
        assert abs(counts / counts.sum(axis=1, keepdims=True) - 0.2).max() < 5 * (0.16 / 400) ** 0.5


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(resolution=5), "resolution of images of 28 x 28 must be one of 2, 4, 7, 14, 28, not 5"),
        (Selection(resolution=56), "resolution"),
        (Selection(classes=(1,)), "classes"),
        (Selection(classes=(1, 1)), "classes"),
        (Selection(classes=(1, 10)), "classes"),
        (Selection(train_size=4001, data_seed=0), "train_size 4001 is larger than the 4000"),
        (Selection(train_size=801, data_seed=0, classes=(1, 2)), "train_size 801 is larger than the 800"),
    ],
)
def test_wrong_selections_are_refused(digits, selection, message):
    with pytest.raises(ValueError, match=message):
        select(digits, selection)


def test_images_that_are_not_square_have_no_other_resolution():
    dataset = make_dataset(
        "made",
        made_arrays()
        | {name: np.zeros((90 if "train" in name else 30, 8, 12), np.uint8) for name in ("x_train", "x_test")},
    )
    with pytest.raises(ValueError, match="not square"):
        select(dataset, Selection(resolution=4))
