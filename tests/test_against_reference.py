"""The core plays the games that DESIGN.md describes: every number beside those of `oracles.training`.

Tolerances. Both sides compute in float32, so one update from the same weights agrees to a rounding of the weights
(up to about 0.3): 1e-7. One thing is not continuous: where two pixels of a max-pool window tie but for a rounding,
the gradient goes to the one or the other, and one filter takes the gradient of another patch. That was measured to
happen in about one update of a hundred and to move a weight by 1e-6 to 1e-4; free-running copies differ from then on,
by up to 5e-3 after 100 actions, while a pull left out or with one regression step too few is off by more than 2e-2.
"""

import math
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
from oracles.training import SlowCNN, SlowRoulette, SlowStep, SlowTraining, evaluate
from torch import nn

from qan_gym.optimizee.zoo import register_network

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
GAMES = {LR: "learning-rate", MINIBATCH: "minibatch"}

ONE_UPDATE = 2e-7  # of a weight, without a tie
TIE = 1e-3  # of a weight, with one
FREE_RUNNING = 1e-2  # of a weight after 100 actions
LOSS = 2e-6  # of a loss (up to 3), from the same weights


@dataclass
class Moment:
    """The env after an action, and what the slow reference says of it."""

    action: float
    observation: np.ndarray
    reward: float
    truncated: bool
    info: dict
    weights: dict[str, np.ndarray]
    batch_counts: list[list[int]]  # images of each class, per mini-batch
    slow: SlowStep  # from the env's weights before this action
    slow_weights: dict[str, np.ndarray]
    free: SlowStep  # from the slow reference's own weights
    free_weights: dict[str, np.ndarray]


@dataclass
class Play:
    """An episode, beside two slow references: one set right before every action; `free`, left to itself."""

    first_observation: np.ndarray
    first_info: dict
    free: SlowTraining
    moments: list[Moment]


def slow_twin(env: gym.Env, game: str, **settings) -> SlowTraining:
    """A slow reference of an env that has just been reset."""
    core = env.unwrapped
    splits = {name: core.split(name) for name in ("train", "validation", "test")}
    return SlowTraining(core.weights(), splits, game=game, reference=core.reference, **settings)


def play(env_id: str, actions: list, *, seed: int = 3, **kwargs) -> Play:
    """Play these actions, or fewer if the episode ends, beside the slow reference."""
    env = gym.make(env_id, **kwargs)
    core = env.unwrapped
    observation, info = env.reset(seed=seed)
    pull = {"pull": kwargs["meta_momentum"]}
    passed_on = ("batch_size", "epochs", "batches_per_action", "learning_rate", "continuous", "action_scale")
    passed_on += ("reward", "observation", "distillation")
    settings = pull | {name: kwargs[name] for name in passed_on if name in kwargs}
    slow, free = (slow_twin(env, GAMES[env_id], **settings) for _ in range(2))
    result = Play(observation.reshape(core.screen_shape), info, free, [])
    labels = core.split("train")[1]
    for action in actions:
        slow.network.load(core.weights())
        given = np.array([action], np.float32) if kwargs.get("continuous") else action
        observation, reward, terminated, truncated, info = env.step(given)
        assert not terminated
        indices = core.batch_indices
        moment = Moment(
            action=action,
            observation=observation.reshape(core.screen_shape),
            reward=reward,
            truncated=truncated,
            info=info,
            weights=core.weights(),
            batch_counts=[np.bincount(labels[batch], minlength=10).tolist() for batch in indices],
            slow=slow.step(action, indices),
            slow_weights=slow.network.numpy(),
            free=free.step(action, indices),
            free_weights=free.network.numpy(),
        )
        result.moments.append(moment)
        if truncated:
            break
    return result


def difference(some: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference of a weight."""
    assert some.keys() == other.keys()
    return max(float(np.abs(some[name] - other[name]).max()) for name in some)


# --- 100 random actions ---------------------------------------------------------------------------------------------

# 100 actions that are 5 epochs: of 40 batches of 10, two an action; of 20 batches of 24.
LONG = {
    LR: {"train_size": 400, "epochs": 5, "batch_size": 10, "batches_per_action": 2, "meta_momentum": 0.001},
    MINIBATCH: {
        **{"train_size": 480, "epochs": 5, "batch_size": 24, "learning_rate": 0.1},
        "meta_momentum": "filter-regression",
    },
}


@pytest.fixture(scope="module", params=[pytest.param(env_id, marks=pytest.mark.slow) for env_id in (LR, MINIBATCH)])
def long_play(request: pytest.FixtureRequest, reference_file: str) -> Play:
    n_actions = {LR: 3, MINIBATCH: 10}[request.param]
    actions = np.random.default_rng(0).integers(n_actions, size=100).tolist()
    result = play(request.param, actions, reference=reference_file, **LONG[request.param])
    assert len(result.moments) == 100
    return result


def test_losses_agree(long_play: Play) -> None:
    """The mini-batch losses, their running mean and the validation split's, at each of 100 random actions."""
    for moment in long_play.moments:
        info, slow = moment.info, moment.slow
        assert info["loss"] == pytest.approx(np.mean(slow.losses), abs=TIE if len(slow.losses) > 1 else LOSS)
        assert info["loss"] == pytest.approx(np.mean(moment.free.losses), abs=5e-3)
        assert info["smoothed_loss"] == pytest.approx(slow.smoothed_loss, abs=1e-4)
        assert info["validation_loss"] == pytest.approx(slow.validation_loss, abs=TIE)
        assert info["validation_accuracy"] == pytest.approx(slow.validation_accuracy, abs=0.0021)  # one image of 500


def test_most_losses_agree_to_rounding(long_play: Play) -> None:
    """Ties are rare: what a tolerance for them could hide, the 9 in 10 without one would show."""
    losses = [abs(moment.info["loss"] - np.mean(moment.slow.losses)) for moment in long_play.moments]
    smoothed = [abs(moment.info["smoothed_loss"] - moment.slow.smoothed_loss) for moment in long_play.moments]
    assert np.quantile(losses, 0.9) < LOSS
    assert np.quantile(smoothed, 0.9) < LOSS


def test_every_update_agrees(long_play: Play) -> None:
    """From the same weights, one action of the core and of the reference give the same weights."""
    differences = [difference(moment.weights, moment.slow_weights) for moment in long_play.moments]
    assert np.quantile(differences, 0.9) < ONE_UPDATE
    assert max(differences) < TIE


def test_weights_agree_after_100_actions(long_play: Play) -> None:
    """Left to itself from the initial weights on, the reference arrives at the same weights."""
    last = long_play.moments[-1]
    first = long_play.moments[0]
    assert difference(last.weights, last.free_weights) < FREE_RUNNING
    assert difference(last.weights, first.weights) > 10 * FREE_RUNNING  # and they have come a long way


def test_learning_rates_agree(long_play: Play) -> None:
    """The learning rate, exactly."""
    rates = [moment.info["learning_rate"] for moment in long_play.moments]
    assert rates == [moment.slow.learning_rate for moment in long_play.moments]
    assert (len(set(rates)) > 5) == (long_play.free.game == "learning-rate")


def test_batches_hold_what_the_roulette_asks_for(long_play: Play) -> None:
    """Of every class as many images as the last ten actions ask for; in the learning-rate game there is no roulette."""
    if long_play.free.game == "learning-rate":
        assert all(sum(counts) == 10 for moment in long_play.moments for counts in moment.batch_counts)
        return
    for moment in long_play.moments:
        assert moment.batch_counts == moment.slow.class_counts


def test_observations_agree(long_play: Play) -> None:
    """The filters after update and pull, and below them the score line."""
    assert long_play.first_observation == pytest.approx(long_play.free.first_observation, abs=1e-6)
    assert long_play.first_observation[-1, 4] == -1  # no action yet
    for moment in long_play.moments:
        screen = moment.observation
        assert screen.dtype == np.float32
        assert screen.shape == moment.slow.observation.shape == (33, 25)
        np.testing.assert_array_equal(screen[:-1], moment.weights["conv1.weight"].reshape(32, 25))
        np.testing.assert_allclose(screen[:-1], moment.slow.observation[:-1], atol=TIE)
        np.testing.assert_allclose(screen[-1], moment.slow.observation[-1], atol=TIE, rtol=0)
        np.testing.assert_allclose(screen[-1, [0, 1, 4]], moment.slow.observation[-1, [0, 1, 4]], rtol=1e-6)
        assert screen[-1, 4] == moment.action
        assert not screen[-1, 5:].any()


def test_rewards_agree_and_telescope(long_play: Play) -> None:
    """Log-loss pays what the reference says, and in all ln(initial loss / final validation loss)."""
    for moment in long_play.moments:
        assert moment.reward == pytest.approx(moment.slow.reward, abs=TIE)
        assert moment.reward == pytest.approx(moment.info["reward_log_loss"], abs=1e-7)
    assert [moment.truncated for moment in long_play.moments] == [False] * 99 + [True]
    initial_loss, final_loss = long_play.first_info["validation_loss"], long_play.moments[-1].slow.validation_loss
    total = sum(moment.reward for moment in long_play.moments)
    assert total == pytest.approx(math.log(initial_loss / final_loss), abs=TIE)
    assert final_loss < initial_loss / 2


def test_test_data_are_reported_at_the_end_only(long_play: Play) -> None:
    """The same keys at every step; the test split's loss is that of the final weights, and NaN before the end."""
    *before, last = long_play.moments
    keys = set(long_play.first_info)
    assert all(set(moment.info) == keys for moment in (*before, last))
    assert all(math.isnan(moment.info[name]) for moment in before for name in ("test_loss", "test_accuracy"))
    loss, accuracy = evaluate(SlowCNN.of(last.weights), *long_play.free.splits["test"])
    assert last.info["test_loss"] == pytest.approx(loss, abs=1e-5)
    assert last.info["test_accuracy"] == pytest.approx(accuracy, abs=0.0021)
    assert abs(last.info["test_loss"] - last.info["validation_loss"]) > 1e-4  # they are different images


# --- the variants, shorter ------------------------------------------------------------------------------------------

TINY = {"train_size": 80, "epochs": 2, "batch_size": 10, "batches_per_action": 1, "meta_momentum": None}


@pytest.fixture
def tiny(small_data: str) -> dict:
    """Two epochs of 8 mini-batches, each an action."""
    return {**TINY, "dataset": small_data}


@pytest.mark.parametrize(
    ("kwargs", "actions"),
    [
        ({"learning_rate": 0.015}, [1, 1, 1, 0, 2, 1, 1]),  # at the lower bound 0.005 from the second action on
        ({"learning_rate": 0.99}, [0, 0, 0, 1, 0, 2]),  # at the upper bound 1.0
        ({"action_scale": "multiplicative"}, [0, 0, 2, 1, 1, 1, 0]),
        ({"action_scale": "multiplicative", "learning_rate": 0.006}, [1, 1, 0, 2]),
        ({"continuous": True}, [0.5, -1.0, 1.0, 0.0, -0.25, 0.75]),
        ({"continuous": True, "learning_rate": 0.006}, [-1.0, -1.0, 1.0]),
        ({"continuous": True, "learning_rate": 0.9}, [1.0, 1.0, -1.0]),
    ],
)
def test_actions_change_the_learning_rate(kwargs: dict, actions: list, tiny: dict) -> None:
    """Raise, lower, keep, on either scale, and continuously; at the bounds too."""
    result = play(LR, actions, **tiny | {"reference": None} | kwargs)
    for moment in result.moments:
        assert moment.info["learning_rate"] == pytest.approx(moment.slow.learning_rate, rel=1e-12)
        assert moment.observation[-1, 0] == pytest.approx(math.log(moment.slow.learning_rate), rel=1e-6)
        assert difference(moment.weights, moment.slow_weights) < TIE
    assert len({moment.info["learning_rate"] for moment in result.moments}) > 1


def test_bounds_are_reached(tiny: dict) -> None:
    """0.005 and 1.0 are the ends, and held there."""
    low = play(LR, [1] * 4, learning_rate=0.015, reference=None, **tiny)
    assert [moment.info["learning_rate"] for moment in low.moments] == pytest.approx([0.01, 0.005, 0.005, 0.005])
    high = play(LR, [0] * 4, learning_rate=0.99, reference=None, **tiny)
    assert [moment.info["learning_rate"] for moment in high.moments] == pytest.approx([0.995, 1.0, 1.0, 1.0])


def test_a_continuous_action_out_of_bounds_is_the_bound(tiny: dict) -> None:
    """2.0 is 1.0, and -7.0 is -1.0."""
    result = play(LR, [2.0, -7.0], continuous=True, reference=None, **tiny)
    assert [moment.info["learning_rate"] for moment in result.moments] == pytest.approx([0.1, 0.05])


@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_distillation(env_id: str, reference_file: str, tiny: dict) -> None:
    """The soft targets of the reference network act on the update; the loss reported is that of the labels."""
    actions = [0, 1, 2, 2, 1, 0] * 2
    kwargs = tiny | {"reference": reference_file}
    result = play(env_id, actions, distillation=0.7, **kwargs)
    differences = [difference(moment.weights, moment.slow_weights) for moment in result.moments]
    assert np.quantile(differences, 0.8) < ONE_UPDATE
    assert max(differences) < TIE
    for moment in result.moments:
        assert moment.info["loss"] == pytest.approx(moment.slow.losses[0], abs=LOSS)
    plain = play(env_id, actions[:1], **kwargs)
    assert difference(plain.moments[0].weights, result.moments[0].weights) > 1e-3


# Rewards do not know the game; `test_rewards_agree_and_telescope` has log-loss in both.
@pytest.mark.parametrize(("env_id", "reward"), [(LR, "log-loss"), (MINIBATCH, "inverse-loss"), (LR, "accuracy")])
def test_rewards(env_id: str, reward: str) -> None:
    """Every reward at every action of a whole episode, the last one included."""
    kwargs = TINY | {"reference": None, "train_size": 200, "epochs": 1, "batches_per_action": 2}
    result = play(env_id, [0, 1, 2, 0, 2] * 2, reward=reward, **kwargs)
    assert [moment.truncated for moment in result.moments] == [False] * 9 + [True]
    for moment in result.moments:
        assert moment.reward == pytest.approx(moment.slow.reward, abs=TIE)
        assert moment.info["reward_" + reward.replace("-", "_")] == pytest.approx(moment.reward, abs=1e-6)
        assert moment.info["reward_divergence"] == 0
    if reward == "log-loss":
        initial, final = result.first_info["validation_loss"], result.moments[-1].info["validation_loss"]
        total = sum(moment.reward for moment in result.moments)
        assert total == pytest.approx(math.log(initial / final), abs=1e-5)
    if reward == "accuracy":
        assert [moment.reward for moment in result.moments[:-1]] == [0.0] * 9
        assert result.moments[-1].reward == result.moments[-1].info["validation_accuracy"] > 0


def test_filters_alone(tiny: dict) -> None:
    """observation="filters" is the paper's screen, without the score line."""
    result = play(LR, [0, 1], observation="filters", reference=None, **tiny)
    assert result.first_observation.shape == (32, 25)
    for moment in result.moments:
        np.testing.assert_allclose(moment.observation, moment.slow.observation, atol=TIE)


# --- the pull -------------------------------------------------------------------------------------------------------

# With a learning rate this small an update changes no weight, and what is left of a step is the pull.
STILL = {"learning_rate": 1e-12, "learning_rate_min": 1e-12, "train_size": 12, "batch_size": 4, "epochs": 7}
WEIGHTS = ["conv1.weight", "conv2.weight", "linear1.weight", "linear2.weight"]
PULLS = [(0.001, WEIGHTS), (0.25, WEIGHTS), ("filter-regression", ["conv1.weight"])]


@pytest.mark.parametrize(("env_id", "kind", "pulled"), [*((LR, *pull) for pull in PULLS), (MINIBATCH, *PULLS[2])])
def test_pull_acts_during_epochs_0_to_5(
    env_id: str, kind: float | str, pulled: list[str], reference_file: str, small_data: str
) -> None:
    """k updates leave (1 - c)^k of the distance to the reference, for 6 epochs of 3 batches and no longer."""
    c = 1 - (1 - 2 * 0.01 / 25) ** 3 if kind == "filter-regression" else kind
    kwargs = {"meta_momentum": kind, "reference": reference_file, "dataset": small_data, "batches_per_action": 1}
    env = gym.make(env_id, **STILL, **kwargs)
    env.reset(seed=1)
    start, reference = env.unwrapped.weights(), env.unwrapped.reference
    for step in range(1, 22):
        env.step(2)
        weights = env.unwrapped.weights()
        left = (1 - c) ** min(step, 18)
        for name, value in weights.items():
            expected = reference[name] + left * (start[name] - reference[name]) if name in pulled else start[name]
            np.testing.assert_allclose(value, expected, atol=5e-7, err_msg=f"{name} after {step} updates")


@pytest.mark.parametrize(("kind", "pulled"), PULLS)
def test_pull_is_that_of_the_reference(kind: float | str, pulled: list[str], reference_file: str, tiny: dict) -> None:
    """Both kinds, equation and explicit gradient steps, in the middle of training: tensor by tensor."""
    kwargs = {"reference": reference_file, **tiny, "meta_momentum": kind}
    helped = play(LR, [2] * 5, **kwargs)
    alone = play(LR, [2], **kwargs | {"meta_momentum": None})
    for moment in helped.moments:
        assert difference(moment.weights, moment.slow_weights) < TIE
    first, without = helped.moments[0].weights, alone.moments[0].weights
    assert sorted(name for name in first if not np.array_equal(first[name], without[name])) == pulled


def test_pull_towards_the_previous_episode(small_data: str) -> None:
    """With reference="previous" the first episode is not pulled, the next is, towards the first one's last weights."""
    kwargs = {"meta_momentum": 0.25, "reference": "previous", "dataset": small_data, "batches_per_action": 1}
    env = gym.make(LR, **STILL | {"epochs": 1}, **kwargs)
    env.reset(seed=0)
    first = env.unwrapped.weights()
    assert env.unwrapped.reference is None
    for _ in range(3):
        *_, truncated, _ = env.step(2)
    assert truncated
    assert difference(env.unwrapped.weights(), first) < 1e-7
    last = env.unwrapped.weights()
    env.reset()
    start = env.unwrapped.weights()
    assert difference(env.unwrapped.reference, last) == 0
    env.step(2)
    for name, value in env.unwrapped.weights().items():
        expected = start[name] + 0.25 * (last[name] - start[name]) if name in WEIGHTS else start[name]
        np.testing.assert_allclose(value, expected, atol=1e-7)


# --- the batches ----------------------------------------------------------------------------------------------------

# What the network learns does not matter here: a small one, without a pull, and few images.
BATCHES = {"train_size": 1000, "epochs": 3, "meta_momentum": None, "reference": None, "batches_per_action": 1}


@pytest.fixture
def batches(registries: None) -> dict:
    register_network("linear", lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)))
    return {**BATCHES, "network": "linear"}


@pytest.mark.parametrize(
    ("policy", "batch_size", "steps"),
    [
        *[(policy, 128, 14) for policy in ("always 7", "always 0", "always 9", "random", "in turn", "few")],
        *[(policy, 37, 40) for policy in ("always 7", "random", "few")],
        ("random", 5, 30),  # 5 is less than 10: all of a batch is of the newest action
    ],
)
def test_roulette(policy: str, batch_size: int, steps: int, batches: dict) -> None:
    """Class by class what the sequential roulette says, exhaustion included; no image twice in an epoch."""
    env = gym.make(MINIBATCH, batch_size=batch_size, **batches)
    env.reset(seed=5)
    labels = env.unwrapped.split("train")[1]
    roulette = SlowRoulette(labels, batch_size)
    per_epoch = len(labels) // batch_size
    rng = np.random.default_rng(0)
    seen: list[int] = []
    for step in range(steps):
        if policy.startswith("always"):
            action = int(policy[-1])
        elif policy == "in turn":
            action = step % 10
        else:
            action = int(rng.integers(10 if policy == "random" else 3))
        if step % per_epoch == 0:
            roulette.start_epoch()
            seen = []
        roulette.remember(action)
        *_, info = env.step(action)
        (batch,) = env.unwrapped.batch_indices
        assert np.bincount(labels[batch], minlength=10).tolist() == roulette.next_batch(), f"at step {step}"
        seen.extend(batch.tolist())
        assert len(set(seen)) == len(seen)
        assert info["batch"] == step + 1
        assert info["epoch"] == (step + 1) // per_epoch


def test_roulette_starts_as_class_0_and_fills_in_class_order(batches: dict) -> None:
    """The numbers of the design, by hand: 12 images for each older action, 20 for the newest; 100 images a class."""
    env = gym.make(MINIBATCH, batch_size=128, **batches)
    env.reset(seed=0)
    labels = env.unwrapped.split("train")[1]
    counts = []
    for _ in range(7):
        env.step(7)
        counts.append(np.bincount(labels[env.unwrapped.batch_indices[0]], minlength=10).tolist())
    assert counts[0] == [100, 8, 0, 0, 0, 0, 0, 20, 0, 0]  # 9 x 12 of class 0, of which there are but 100
    assert counts[1] == [0, 92, 4, 0, 0, 0, 0, 32, 0, 0]  # 8 x 12 of class 0, all gone: from classes 1 and 2
    assert counts[2] == [0, 0, 84, 0, 0, 0, 0, 44, 0, 0]
    assert counts[3] == [0, 0, 12, 100, 12, 0, 0, 4, 0, 0]


def test_roulette_draws_each_class_in_a_random_order(batches: dict) -> None:
    """Not the first images of the file, and not the same again in the next epoch."""
    env = gym.make(MINIBATCH, batch_size=100, **batches)
    env.reset(seed=0)
    labels = env.unwrapped.split("train")[1]
    drawn = []
    for _ in range(3):
        for _ in range(10):  # of class 0: its 100 images, then no more, in each of 3 epochs
            env.step(0)
            batch = env.unwrapped.batch_indices[0]
            if (labels[batch] == 0).any():
                drawn.append(batch[labels[batch] == 0].tolist())
    assert len(drawn) == 3
    assert all(sorted(order) == np.flatnonzero(labels == 0).tolist() for order in drawn)
    assert drawn[0] != sorted(drawn[0])
    assert drawn[0] != drawn[1] != drawn[2]


@pytest.mark.parametrize("game", ["learning-rate", "shuffled"])
def test_an_epoch_is_a_permutation(game: str, batches: dict) -> None:
    """The learning-rate game and shuffled SGD visit every image once an epoch, in another order each time."""
    env = gym.make(LR if game == "learning-rate" else MINIBATCH, batch_size=50, **batches | {"batches_per_action": 4})
    env.reset(seed=2, options={"sampler": "shuffled"} if game == "shuffled" else None)
    orders = []
    for _ in range(3):
        drawn = []
        for _ in range(5):
            env.step(2)
            assert env.unwrapped.batch_indices.shape == (4, 50)
            drawn.append(env.unwrapped.batch_indices.ravel())
        orders.append(np.concatenate(drawn))
    for order in orders:
        assert sorted(order.tolist()) == list(range(1000))
        assert np.abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15  # not the order of the file
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[1], orders[2])


# --- the full game --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_full_game(mnist_root: object) -> None:
    """On the 70,000 real images: the sizes of the splits, and three actions beside the reference."""
    env = gym.make("QanMinibatch-MNIST-v0", meta_momentum=None, reference=None)
    env.reset(seed=0)
    assert env.unwrapped.split("train")[0].shape == (20_000, 1, 32, 32)
    assert len(env.unwrapped.split("validation")[1]) == 5_000
    assert len(env.unwrapped.split("test")[1]) == 10_000
    slow = slow_twin(env, "minibatch", batch_size=128, epochs=40)
    for action in (3, 1, 4):
        _, reward, _, _, info = env.step(action)
        assert env.unwrapped.batch_indices.shape == (1, 128)
        expected = slow.step(action, env.unwrapped.batch_indices)
        assert info["loss"] == pytest.approx(expected.losses[0], abs=1e-4)
        assert reward == pytest.approx(expected.reward, abs=1e-4)
        assert difference(env.unwrapped.weights(), slow.network.numpy()) < TIE
