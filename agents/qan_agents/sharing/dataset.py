"""Datasets for offline reinforcement learning, in Minari's format."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
from gymnasium.wrappers import FrameStackObservation
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage import get_dataset_path

import qan_gym
from qan_agents.policies.rollout import Episode, EpisodeRecorder, play_episode
from qan_agents.seeds import training_seed
from qan_agents.sharing.players import Player
from qan_gym.utils.files import ASIDE

ROOT_VARIABLE = "MINARI_DATASETS_PATH"  # the folder of all datasets


def check_id(dataset_id: str) -> None:
    """Refuse an id that a dataset cannot have, before anything is played.

    Raises:
        ValueError: it is malformed, or there is such a dataset.
    """
    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{dataset_id!r} is no id of a Minari dataset: write NAME-vNUMBER, as qan/lr5k/cosine-v0"
        ) from error
    if get_dataset_path(dataset_id).exists():
        raise ValueError(f"there is a dataset {dataset_id} already: give it another version, or remove it")


def write_dataset(
    player: Player, episodes: int, seed: int, dataset_id: str, finished: Callable[[int, Episode], None]
) -> Path:
    """Play episodes, and write them as a dataset: it is there when all of them are, and not before.

    Observations, actions, rewards and ends are those of the environment itself, whatever history the policy looks at.
    The seeds of the episodes are of trainings: an agent that learns from them can be evaluated on unseen ones.

    Args:
        player: what plays.
        episodes: how many.
        seed: the episodes follow from it.
        dataset_id: as Minari has it, with a version.
        finished: called after every episode, with its number.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: see `check_id`; or the policy cannot play the environment.
    """
    check_id(dataset_id)
    place = Path(get_dataset_path(dataset_id))
    made = gym.make(player.env, **player.env_kwargs)
    env = FrameStackObservation(EpisodeRecorder(made, frames=True), player.history)
    with _aside() as folder:
        dataset: minari.MinariDataset | None = None
        for number in range(episodes):
            own_seed = training_seed(seed, number)
            episode = play_episode(env, player.policy, own_seed)
            buffer = _buffer(number, own_seed, episode)
            if dataset is None:
                dataset = _begin(dataset_id, buffer, made, player, seed)
            else:
                dataset.update_dataset_from_buffer([buffer])
            finished(number, episode)
        env.close()
        whole = folder / dataset_id
        place.parent.mkdir(parents=True, exist_ok=True)
        whole.replace(place)
    namespace = parse_dataset_id(dataset_id)[0]
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)
    return place


@contextmanager
def _aside() -> Iterator[Path]:
    """A folder among the datasets, where Minari writes for a while; a kill leaves nothing that looks like a dataset."""
    before = os.environ.get(ROOT_VARIABLE)
    folder = Path(tempfile.mkdtemp(prefix=ASIDE, dir=get_dataset_path()))
    os.environ[ROOT_VARIABLE] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ[ROOT_VARIABLE]
        else:
            os.environ[ROOT_VARIABLE] = before
        shutil.rmtree(folder)


def _buffer(number: int, seed: int, episode: Episode) -> EpisodeBuffer:
    arrays = episode.arrays()
    steps = len(arrays["rewards"])
    ends = [False] * (steps - 1)
    return EpisodeBuffer(
        id=number,
        seed=seed,
        observations=list(arrays["frames"]),
        actions=list(arrays["actions"]),
        rewards=arrays["rewards"].tolist(),
        terminations=[*ends, episode.terminated],
        truncations=[*ends, not episode.terminated],
    )


def _begin(
    dataset_id: str, buffer: EpisodeBuffer, env: gym.Env[Any, Any], player: Player, seed: int
) -> minari.MinariDataset:
    """A dataset of one episode, with what others need to know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it recommends for datasets on its server: an address, a link
        return minari.create_dataset_from_buffers(
            dataset_id,
            [buffer],
            env=env,
            eval_env=env.spec,
            algorithm_name=player.name,
            description=f"{player.name} plays {player.env}; the episodes, each a training, follow from seed {seed}.",
            requirements=[f"qan-gym=={qan_gym.__version__}"],
        )
