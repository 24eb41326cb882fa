"""Watch a trained agent play an unseen episode: in a window, or as a video."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FrameStackObservation
from numpy.typing import NDArray

from qan_agents.experiments.learner import Greedy
from qan_agents.experiments.run_folder import Run
from qan_agents.experiments.train import load_agent
from qan_agents.policies.rollout import Episode, Recorder, play
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.rendering.frames import FPS
from qan_gym.utils.files import require_writable, write_aside

MOST_FRAMES = 600  # of a video: of longer episodes not every action is shown
MACRO_BLOCK = 8  # pixels by which width and height can be divided, as the codec wants

Show = Callable[[NDArray[np.uint8]], None]


class Thinking(Greedy):
    """A trained agent that says what it expects of its actions."""

    def start(self, env: gym.Env, seed: int) -> None:
        """See `Policy.start`."""
        self.screen: Any = env.unwrapped

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> int:
        """See `Policy.act`."""
        values = self.values(observation)
        self.screen.show_values(values)
        return int(values.argmax())


class Filmed(gym.Wrapper):
    """Gives the frames of every so many actions away, of the beginning and of the end."""

    def __init__(self, env: gym.Env, every: int, show: Show) -> None:
        """env: with render_mode "rgb_array"; every: actions from frame to frame; show: takes a frame (H, W, 3)."""
        super().__init__(env)
        self.every, self.show, self.played = every, show, 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin, and show it."""
        self.played = 0
        begun = self.env.reset(**kwargs)
        self.show(self.env.render())
        return begun

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play, and show what is due."""
        outcome = self.env.step(action)
        self.played += 1
        if self.played % self.every == 0 or outcome[2] or outcome[3]:
            self.show(self.env.render())
        return outcome


def watch(run: Run, seed: int, video: Path | None) -> Episode:
    """Play the agent of a run greedily, with the ghost and what the agent expects in the picture.

    Args:
        run: with a saved agent.
        seed: of the episode, below 2**31, where no training episode is.
        video: the .mp4 file to write; None: show it in a window.

    Returns:
        The episode.

    Raises:
        ValueError: the run has no agent, the seed or the file's name is wrong, or there is no display for a window.
        ImportError: a library that draws or films is missing.
    """
    if not 0 <= seed < UNSEEN_BELOW:
        raise ValueError(f"seed must be in [0, 2**31), where no training episode is, not {seed}")
    if video is None:
        return _play(run, seed, "human", None)
    if video.suffix != ".mp4":
        raise ValueError(f"a video is an .mp4 file, not {video}")
    require_writable(video.parent)
    with _film(video) as show:
        return _play(run, seed, "rgb_array", show)


def _play(run: Run, seed: int, render_mode: str, show: Show | None) -> Episode:
    learner, config = load_agent(run), run.config()
    env: gym.Env = Recorder(gym.make(config.env, **{**config.env_kwargs, "render_mode": render_mode, "baseline_run": True}))
    if show is not None:
        env = Filmed(env, -(-learner.facts.episode_length // MOST_FRAMES), show)
    try:
        return play(FrameStackObservation(env, learner.config.history), Thinking(learner), seed)
    finally:
        env.close()
        learner.close()


@contextmanager
def _film(path: Path) -> Iterator[Show]:
    """Takes frames of the same size one by one; when the block ends well, they are an MP4."""
    from imageio_ffmpeg import write_frames

    with write_aside(path) as aside:
        writers: list[Any] = []

        def show(frame: NDArray[np.uint8]) -> None:
            if not writers:
                height, width = frame.shape[:2]
                writers.append(write_frames(str(aside), (width, height), fps=FPS, macro_block_size=MACRO_BLOCK))
                writers[0].send(None)
            writers[0].send(np.ascontiguousarray(frame))

        try:
            yield show
        finally:
            for writer in writers:
                writer.close()
