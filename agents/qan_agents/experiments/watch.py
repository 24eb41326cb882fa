"""Watch a trained agent play an unseen episode: in a window, or as a video."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FrameStackObservation
from numpy.typing import NDArray

from qan_agents.experiments.run_folder import Run
from qan_agents.experiments.train import load_agent
from qan_agents.policies.fixed import Policy
from qan_agents.policies.rollout import Episode, EpisodeRecorder, play_episode, qan_env
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.rendering import FPS
from qan_gym.rendering.frames import require_matplotlib
from qan_gym.rendering.window import missing_display
from qan_gym.utils.files import require_writable, write_aside

MOST_FRAMES = 600  # of a video: of longer episodes not every action is shown
MACRO_BLOCK = 8  # pixels by which width and height can be divided, as the codec wants

FrameSink = Callable[[NDArray[np.uint8]], None]  # is given frames (H, W, 3), one after the other


class PolicyWithShownValues:
    """A policy; where it values the actions, the frames show the values of the observation that it decides on."""

    def __init__(self, policy: Policy) -> None:
        """policy: chooses the actions; may have `values(observation) -> (A,)`."""
        self.policy = policy
        self.values: Callable[[NDArray[Any]], NDArray[np.float32]] | None = getattr(policy, "values", None)

    def start(self, env: gym.Env[Any, Any], seed: int) -> dict[str, Any] | None:
        """See `Policy.start`."""
        self.env = qan_env(env)
        return self.policy.start(env, seed)

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`."""
        if self.values is not None:
            self.env.show_values(self.values(observation))
        return self.policy.act(observation, info)


class FrameCapture(gym.Wrapper[Any, Any, Any, Any]):
    """Passes on the frames of the beginning, of every so many actions, and of the end of an episode."""

    def __init__(self, env: gym.Env[Any, Any], every: int, sink: FrameSink) -> None:
        """env: with render_mode "rgb_array"; every: actions from frame to frame; sink: takes the frames."""
        super().__init__(env)
        self.every, self.sink, self.steps = every, sink, 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, and pass on its first frame."""
        self.steps = 0
        begun = self.env.reset(**kwargs)
        self._pass_on()
        return begun

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play an action, and pass on its frame if that is due."""
        outcome = self.env.step(action)
        self.steps += 1
        if self.steps % self.every == 0 or outcome[2] or outcome[3]:
            self._pass_on()
        return outcome

    def _pass_on(self) -> None:
        frame = self.env.render()
        assert isinstance(frame, np.ndarray)  # by the render mode
        self.sink(frame)


def watch_agent(run: Run, seed: int, video: Path | None) -> Episode:
    """Play the agent of a run greedily; the frames show the baseline run and, where the agent has them, its Q-values.

    Args:
        run: with a saved agent.
        seed: of the episode, below 2**31, where no training episode is.
        video: the .mp4 file to write; None: show it in a window.

    Returns:
        The record of the episode.

    Raises:
        ValueError: the run has no agent, the seed or the file's name is wrong, or there is no display for a window.
        ImportError: a library that draws or encodes is missing.
    """
    if not 0 <= seed < UNSEEN_BELOW:
        raise ValueError(f"seed must be in [0, 2**31), where no training episode is, not {seed}")
    run.config()
    _ = run.model_file  # what is no run, or has no agent yet, is said before anything about windows and files
    if video is None:
        require_matplotlib()
        if (missing := missing_display()) is not None:
            raise ValueError(f"{missing}; --video FILE.mp4 needs none")
        return _play(run, seed, "human", None)
    if video.suffix != ".mp4":
        raise ValueError(f"a video is an .mp4 file, not {video}")
    if video.is_dir():
        raise ValueError(f"{video} is a folder: name a file")
    require_writable(video.parent)
    with _video_writer(video) as sink:
        return _play(run, seed, "rgb_array", sink)


def _play(run: Run, seed: int, render_mode: str, sink: FrameSink | None) -> Episode:
    agent, config = load_agent(run), run.config()
    rendering = {"render_mode": render_mode, "baseline_run": True}
    env: gym.Env[Any, Any] = EpisodeRecorder(gym.make(config.env, **{**config.env_kwargs, **rendering}))
    if sink is not None:
        env = FrameCapture(env, -(-agent.facts.episode_length // MOST_FRAMES), sink)
    try:
        policy = PolicyWithShownValues(agent.policy())
        return play_episode(FrameStackObservation(env, agent.history), policy, seed)
    finally:
        env.close()
        agent.close()


@contextmanager
def _video_writer(path: Path) -> Iterator[FrameSink]:
    """A sink for frames of the same size; when the block ends without an error, they are an MP4 file."""
    from imageio_ffmpeg import write_frames

    with write_aside(path) as aside:
        writers: list[Any] = []

        def write(frame: NDArray[np.uint8]) -> None:
            if not writers:
                height, width = frame.shape[:2]
                writers.append(write_frames(str(aside), (width, height), fps=FPS, macro_block_size=MACRO_BLOCK))
                writers[0].send(None)
            writers[0].send(np.ascontiguousarray(frame))

        try:
            yield write
        finally:
            for writer in writers:
                writer.close()
