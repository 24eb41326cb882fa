"""The controllers that come with the package."""

import numpy as np
import pytest

from qan_agents.controllers.controller import LARGEST_FILE
from qan_agents.controllers.shipped import shipped_controller, shipped_paths
from qan_agents.judging.contenders import made_by

ALL = [(optimizer, replicate) for optimizer, files in shipped_paths().items() for replicate in files]


def test_there_is_one_for_each_optimizer_of_the_family_and_one_of_the_long_tail():
    assert {name for name, replicate in ALL if replicate == 0} == {"sgd", "adamw", "long-tail"}


@pytest.mark.parametrize(("optimizer", "replicate"), ALL)
def test_a_shipped_controller_is_what_its_name_says(optimizer, replicate):
    """Of the optimizer, of the seed, small, and made on the training split; it acts within its range."""
    controller = shipped_controller(optimizer, replicate)
    config = controller.provenance["config"]
    if controller.settings.factor is None:
        assert (optimizer, controller.settings.family) == ("long-tail", "QanMinibatch-LongTail-v0")
    else:
        assert controller.settings.optimizers == (optimizer,)
    assert config["seed"] == replicate
    assert config["env_kwargs"].get("split", "train") == "train"
    assert shipped_paths()[optimizer][replicate].stat().st_size <= LARGEST_FILE
    observations = np.random.default_rng(0).normal(0, 3, (50, controller.settings.size)).astype(np.float32)
    actions, _ = controller.act(observations, controller.memory(50))
    assert (np.abs(actions) <= 1).all()
    assert np.unique(actions).size > 10


@pytest.mark.parametrize(
    ("given", "message"),
    [(("adam", 0), "did you mean 'adamw'"), (("sgd", -1), "replicate must be one of 0"), (("sgd", "0"), "replicate")],
)
def test_there_is_no_other(given, message):
    with pytest.raises(ValueError, match=message):
        shipped_controller(*given)


def test_replicates_differ_in_their_seed_alone():
    """Also in those of the meta-trainings that they started from."""
    for optimizer in shipped_paths():
        replicates = [shipped_controller(optimizer, replicate) for replicate in shipped_paths()[optimizer]]
        assert len({made_by(replicate) for replicate in replicates}) == 1
        for replicate in replicates:
            config = replicate.provenance["config"]
            while start := config.get("start"):
                assert start["config"]["seed"] == config["seed"]
                config = start["config"]
