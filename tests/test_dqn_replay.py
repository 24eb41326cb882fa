"""The bundled DQN's replay against a list that holds everything, and its transitions of vector environments."""

from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from helpers import small_data

from qan_agents.dqn import DQN, DQNConfig, EnvInterface, TensorVectorEnv, train
from qan_agents.dqn.replay import Batch, Replay

GAMMA = 0.9
QAN = {"dataset": small_data(), "epochs": 1, "batches_per_action": 4, "meta_momentum": None, "reference": None}


def make_replay(slots: int, num_envs: int, **settings: object) -> Replay:
    given = {"history": 1, "n_step": 1, "priority_exponent": 0.0, "dtype": torch.float32, **settings}
    return Replay(slots * num_envs, num_envs, 2, gamma=GAMMA, device=torch.device("cpu"), **given)


class Rows:
    """All transitions of each row, as (frame, action, reward, terminated, ended, next frame, age)."""

    def __init__(self, replay: Replay, seed: int = 0) -> None:
        self.replay = replay
        self.rng = np.random.default_rng(seed)
        self.rows: list[list[tuple]] = [[] for _ in range(replay.num_envs)]
        self.age = [0] * replay.num_envs
        self.count = 0

    def play(self, steps: int, skip: float = 0.3, end: float = 0.2) -> None:
        """Random steps; some rows do not play in some of them."""
        for _ in range(steps):
            valid = self.rng.random(len(self.rows)) >= skip
            new = []
            for row, rows in enumerate(self.rows):
                self.count += 1
                ended = bool(self.rng.random() < end)
                terminated = ended and bool(self.rng.random() < 0.5)
                frame = rows[-1][5] if rows and self.age[row] > 0 else (float(self.count), float(row))
                next_frame = (self.count + 0.5, float(row))
                transition = (frame, int(self.rng.integers(5)), float(self.rng.normal()), terminated, ended, next_frame)
                new.append((*transition, self.age[row]))
                if valid[row]:
                    rows.append(new[-1])
                    self.age[row] = 0 if ended else self.age[row] + 1
            columns = [torch.tensor(column) for column in zip(*new, strict=True)]
            self.replay.add(*columns, torch.from_numpy(valid))

    def end_episodes(self) -> None:
        """End the episode of every row."""
        self.replay.end_episodes()
        for row, rows in enumerate(self.rows):
            self.age[row] = 0
            if rows:
                rows[-1] = (*rows[-1][:4], True, *rows[-1][5:])

    def drawable(self) -> dict[int, tuple[int, int]]:
        """Place -> (row, number)."""
        places = {}
        for row, rows in enumerate(self.rows):
            kept = len(rows) if len(rows) <= self.replay.slots - self.replay.history else None
            first = 0 if kept is not None else len(rows) - (self.replay.slots - self.replay.history)
            for number in range(first, len(rows)):
                places[number % self.replay.slots * len(self.rows) + row] = (row, number)
        return places

    def stack(self, row: int, number: int) -> list[tuple]:
        frames = [
            self.rows[row][number - back][0]
            for back in range(min(self.replay.history - 1, self.age_of(row, number)) + 1)
        ]
        frames += [frames[-1]] * (self.replay.history - len(frames))
        return frames[::-1]

    def age_of(self, row: int, number: int) -> int:
        return self.rows[row][number][6]

    def expected(self, row: int, number: int) -> tuple:
        """Observation, action, reward, discount, next observation."""
        total, last = 0.0, number
        for step in range(self.replay.n_step):
            last = number + step
            total += GAMMA**step * self.rows[row][last][2]
            if self.rows[row][last][4] or last + 1 == len(self.rows[row]):
                break
        discount = 0.0 if self.rows[row][last][3] else GAMMA ** (last - number + 1)
        next_observation = [*self.stack(row, last)[1:], self.rows[row][last][5]]
        return self.stack(row, number), self.rows[row][number][1], total, discount, next_observation

    def check(self, batch: Batch) -> None:
        places = self.drawable()
        for number, place in enumerate(batch.places.tolist()):
            assert place in places, "what was drawn is not to be drawn"
            observation, action, reward, discount, next_observation = self.expected(*places[place])
            assert batch.observations[number].tolist() == [list(frame) for frame in observation]
            assert batch.next_observations[number].tolist() == [list(frame) for frame in next_observation]
            assert int(batch.actions[number]) == action
            assert float(batch.rewards[number]) == pytest.approx(reward, abs=1e-5)
            assert float(batch.discounts[number]) == pytest.approx(discount, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.0, 0.7])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("history", [1, 4])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_everything_drawn_is_what_was_played(exponent, n_step, history, num_envs):
    """Not full, full, and written over several times; rows of different lengths; new beginnings in between."""
    replay = make_replay(20, num_envs, history=history, n_step=n_step, priority_exponent=exponent)
    rows = Rows(replay)
    generator = torch.Generator().manual_seed(0)
    for steps in (1, 3, 5, 15, 40, 7):
        rows.play(steps, skip=0.0 if steps == 1 else 0.3)
        if steps % 2:
            rows.end_episodes()
        batch = replay.sample(1500, 0.5, generator)
        rows.check(batch)
        assert set(batch.places.tolist()) == set(rows.drawable()), "something is never drawn"
        if exponent:
            assert set(replay.priorities.nonzero()[:, 0].tolist()) == set(rows.drawable())
            assert (batch.weights == 1).all(), "all have the same priority still"


def test_drawing_is_uniform():
    replay = make_replay(20, 3)
    rows = Rows(replay)
    rows.play(17, skip=0.5)
    places = rows.drawable()
    assert len({len(some) for some in rows.rows}) > 1
    drawn = Counter(replay.sample(60_000, 1.0, torch.Generator().manual_seed(0)).places.tolist())
    expected = 60_000 / len(places)
    square = sum((drawn[place] - expected) ** 2 / expected for place in places)
    assert square < 2 * len(places)  # the mean is len(places) - 1


@pytest.mark.parametrize("slots", [20, 3000])
def test_drawing_follows_the_priorities(slots):
    """Over one block of sums and over several; the weights correct for it."""
    replay = make_replay(slots, 2, priority_exponent=0.5)
    rows = Rows(replay)
    rows.play(slots + 3, skip=0.1)
    places = torch.tensor(sorted(rows.drawable()))
    errors = torch.rand(len(places), generator=torch.Generator().manual_seed(1)) * 9
    replay.set_priorities(places, -errors)
    priorities = (errors + 1e-6).sqrt()
    assert torch.allclose(replay.priorities[places], priorities)
    assert float(replay.priorities.sum()) == pytest.approx(float(priorities.sum()), rel=1e-4)
    batch = replay.sample(20_000, 0.4, torch.Generator().manual_seed(0))
    drawn = torch.bincount(batch.places, minlength=len(replay.priorities))[places]
    expected = 20_000 * priorities / priorities.sum()
    assert float(((drawn - expected) ** 2 / expected.clamp(min=1)).sum()) < 1.5 * len(places)
    share = (priorities / priorities.sum())[torch.searchsorted(places, batch.places)]
    weights = (share * len(places)) ** -0.4
    assert torch.allclose(batch.weights, weights / weights.max(), rtol=1e-3)
    before = set(rows.drawable())
    rows.play(1, skip=0.0)
    new = set(rows.drawable()) - before
    assert torch.allclose(replay.priorities[sorted(new)], torch.maximum(priorities.max(), torch.tensor(1.0)))


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float16, 1.0), (torch.uint8, 255.0)])
def test_frames_are_held_as_asked_for(dtype, factor):
    replay = make_replay(10, 1, dtype=dtype)
    frames = torch.tensor([[3.0, 250.0]])
    one = torch.ones(1, dtype=torch.bool)
    replay.add(frames, one.long(), one.float(), ~one, ~one, frames + 1, 0 * one.long(), one)
    assert replay.frames.dtype == replay.next_frames.dtype == dtype
    batch = replay.sample(3, 1.0, torch.Generator())
    assert batch.observations.dtype == torch.float32
    assert torch.allclose(batch.observations, frames.expand(3, 1, 2) / factor)
    assert torch.allclose(batch.next_observations, (frames + 1).expand(3, 1, 2) / factor)


# --- environments -------------------------------------------------------------------------------------------------


class Counting(gym.Env):
    """Observations say which episode and which step; lengths differ, every second episode terminates."""

    def __init__(self, row: int, start: int, dtype: str) -> None:
        self.row, self.start, self.episode = row, start, 0
        self.observation_space = gym.spaces.Box(0, 200, (3,), np.dtype(dtype).type)
        self.action_space = gym.spaces.Discrete(2, start=start)

    def _seen(self) -> np.ndarray:
        return np.array([self.row, self.episode, self.t], self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._seen(), {}

    def step(self, action):
        assert action in (self.start, self.start + 1)
        self.t += 1
        over = self.t == 2 + (self.row + self.episode) % 3
        gone = over and self.episode % 2 == 0
        return self._seen(), 100.0 * self.episode + self.t, gone, over and not gone, {}


def counting(mode: AutoresetMode, start: int = 0, dtype: str = "float32") -> VectorEnv:
    return SyncVectorEnv([lambda row=row: Counting(row, start, dtype) for row in range(3)], autoreset_mode=mode)


def held(replay: Replay) -> set[tuple]:
    """All transitions: frame, next frame, action left out, reward, ends."""
    out = set()
    for row in range(replay.num_envs):
        for slot in range(int(replay.size[row])):
            place = slot * replay.num_envs + row
            frames = [int(value) for value in (*replay.frames[place].tolist(), *replay.next_frames[place].tolist())]
            flags = (bool(replay.terminated[place]), bool(replay.ended[place]), int(replay.age[place]))
            out.add((*frames, round(float(replay.rewards[place]), 4), *flags))
    return out


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_no_transition_crosses_a_reset(mode, start, dtype):
    """And the value of what follows counts after a truncation, but not after a termination."""
    env = counting(mode, start, dtype)
    storage = "uint8" if dtype == "uint8" else "float32"
    config = DQNConfig(buffer_size=3000, learning_starts=1000, storage=storage, gamma=GAMMA)
    agent = DQN(config, EnvInterface.of(env))
    finished = train(agent, env, 300)
    transitions = held(agent.replay)
    for row, episode, t, *next_frame, reward, terminated, ended, age in transitions:
        assert next_frame == [row, episode, t + 1]
        assert age == t
        assert reward == 100 * episode + t + 1
        over = t + 1 == 2 + (row + episode) % 3
        assert ended == over
        assert terminated == (over and episode % 2 == 0)
    steps = {(row, episode, t) for row, episode, t, *_ in transitions}
    assert len(steps) == len(transitions) == int(agent.replay.size.sum())
    for row in range(3):  # not a step is missing
        last = max(episode for some, episode, _ in steps if some == row)
        for episode in range(1, last):
            assert {t for some, e, t in steps if (some, e) == (row, episode)} == set(range(2 + (row + episode) % 3))
    batch = agent.replay.sample(500, 1.0, torch.Generator().manual_seed(0))
    discounts = [0.0 if agent.replay.terminated[place] else GAMMA for place in batch.places]
    assert batch.discounts.tolist() == pytest.approx(discounts)
    assert {0.0, GAMMA} == set(discounts)
    returns = dict.fromkeys(range(1, 100), 0.0)
    for row, episode, *_, reward, _, _, _ in transitions:
        returns[episode] += reward * (row == 0)
    assert set(returns.values()) & {value for _, value in finished}, "the returns are those of the episodes"


def test_both_ways_of_resetting_fill_the_replay_alike():
    """What is in both is the same; NEXT_STEP has fewer, because resets take steps."""
    contents = []
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        env = counting(mode)
        agent = DQN(DQNConfig(buffer_size=3000, learning_starts=1000), EnvInterface.of(env))
        train(agent, env, 240)
        contents.append(held(agent.replay))
    assert contents[0] < contents[1]


ENDING = {"learning_rate": 0.1, "target_loss": 2.3}  # rows end at different times, by termination


@pytest.mark.parametrize(
    ("output", "mode", "ending"),
    [
        ("numpy", AutoresetMode.NEXT_STEP, ENDING),
        pytest.param("torch", AutoresetMode.NEXT_STEP, {}, marks=pytest.mark.slow),  # all at once, by truncation
        pytest.param("numpy", AutoresetMode.SAME_STEP, {}, marks=pytest.mark.slow),
        pytest.param("torch", AutoresetMode.SAME_STEP, ENDING, marks=pytest.mark.slow),
    ],
)
def test_the_environments_of_qan_gym(output, mode, ending):
    """The replay holds the transitions that the plain environment gives for the same actions."""
    arguments = {"num_envs": 3, "autoreset_mode": mode, **QAN, **ending}
    env = gym.make_vec("QanLR-MNIST5k-v1", output=output, **arguments)
    agent = DQN(DQNConfig(learning_starts=10_000), EnvInterface.of(env))
    train(agent, env, 24, seed=4)
    replay = agent.replay
    plain = gym.make_vec("QanLR-MNIST5k-v1", output="numpy", **arguments)
    frames, _ = plain.reset(seed=4)
    ends, numbers, over = [], [0, 0, 0], np.zeros(3, bool)
    other = DQN(DQNConfig(learning_starts=10_000), EnvInterface.of(env))
    other.begin(torch.from_numpy(frames))
    for _ in range(8):  # episodes have 5 actions
        actions = other.act().numpy().copy()  # the same exploration
        observations, rewards, terminated, truncated, infos = plain.step(actions)
        done = terminated | truncated
        for row in range(3):
            if over[row] and mode == AutoresetMode.NEXT_STEP:
                continue
            final = done[row] and mode == AutoresetMode.SAME_STEP
            place = numbers[row] * 3 + row
            np.testing.assert_array_equal(replay.frames[place].numpy(), frames[row])
            next_frame = infos["final_obs"][row] if final else observations[row]
            np.testing.assert_array_equal(replay.next_frames[place].numpy(), next_frame)
            assert float(replay.rewards[place]) == pytest.approx(float(rewards[row]), rel=1e-6)
            assert (bool(replay.terminated[place]), bool(replay.ended[place])) == (terminated[row], done[row])
            numbers[row] += 1
        ends.append(done)
        over, frames = done, observations
    assert replay.size.tolist() == numbers
    assert np.any(ends)
    assert any(0 < done.sum() < 3 for done in ends) == bool(ending), "rows end at different times with a target loss"


def test_what_cannot_be_played_is_refused():
    env = counting(AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="NEXT_STEP or SAME_STEP"):
        TensorVectorEnv(env, torch.device("cpu"))
    env.metadata = {}
    with pytest.raises(ValueError, match="autoreset_mode"):
        TensorVectorEnv(env, torch.device("cpu"))
    with pytest.raises(ValueError, match="FlattenObservation"):
        EnvInterface.of(gym.make_vec("FrozenLake-v1", num_envs=2, vectorization_mode="sync"))
    with pytest.raises(ValueError, match="Discrete actions"):
        EnvInterface.of(gym.make_vec("QanLR-MNIST5k-v1", num_envs=2, continuous=True, **QAN))
    agent = DQN(DQNConfig(), EnvInterface.of(counting(AutoresetMode.NEXT_STEP)))
    with pytest.raises(ValueError, match="was made for"):
        train(agent, gym.make_vec("CartPole-v1", num_envs=2), 10)
