"""PPO in one file, in the manner of CleanRL: plain PyTorch and `gym.make_vec`, 8 CNNs trained in lock-step.

python examples/cleanrl_ppo.py --steps 3200
python examples/cleanrl_ppo.py --env QanLR-Family-v0

Gymnasium's vector environments reset themselves in the step *after* the end of an episode (NEXT_STEP): that step
ignores the action, pays nothing and leads from the last screen of one episode to the first of the next. It is no
transition of the game, so it is left out of the update. In return the screen after every real step is really the next
one, also where the budget truncated the episode: its value is the bootstrap.
"""

import argparse

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from torch import nn
from torch.distributions import Categorical

import qan_gym  # noqa: F401 (registers the environments)

# Of the game of the default: trainings of 40 actions, without the pull towards reference weights. Of the family, whose
# episodes draw their tasks: an action per factor. {} is a game as registered.
GAMES = {
    "QanLR-MNIST5k-v1": {"epochs": 1, "meta_momentum": None},
    "QanLR-Family-v0": {"continuous": False, "learning_rate_factors": [0.25, 0.5, 1.0, 2.0, 4.0]},
}
SEED = 1
ROLLOUT = 40  # steps of every row between updates
PASSES, MINIBATCHES = 4, 4
LEARNING_RATE, GAMMA, LAMBDA, CLIP, ENTROPY, MAX_GRAD_NORM = 1e-3, 0.99, 0.95, 0.2, 0.01, 0.5


class Agent(nn.Module):
    """(..., D) screens -> a distribution over the actions, and values (...)."""

    def __init__(self, envs: gym.vector.VectorEnv) -> None:
        """envs: a Box of one dimension, Discrete actions."""
        super().__init__()
        size, actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
        self.actor, self.critic = (
            nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
            for outputs in (actions, 1)
        )

    def forward(self, screens: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """What the agent would do, and what it expects."""
        return Categorical(logits=self.actor(screens)), self.critic(screens)[..., 0]


def advantages(
    rewards: torch.Tensor, values: torch.Tensor, terminated: torch.Tensor, over: torch.Tensor
) -> torch.Tensor:
    """Generalised advantage estimation.

    Args:
        rewards, terminated, over: (T, N), of the steps; over: terminated or truncated.
        values: (T + 1, N), of the screens before the steps and after the last.

    Returns:
        (T, N). What follows a terminated step is worth nothing; what would have followed a truncated one is worth
        the value of its last screen, which NEXT_STEP hands out; neither sees the next episode.
    """
    out, last = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + GAMMA * values[t + 1] * ~terminated[t] - values[t]
        out[t] = last = delta + GAMMA * LAMBDA * last * ~over[t]
    return out


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, ...]) -> None:
    """The clipped objective, over all (B, ...) of the batch, some times."""
    screens, actions, old_log_probs, gains, returns = batch
    for _ in range(PASSES):
        for rows in torch.randperm(len(actions)).chunk(MINIBATCHES):
            policy, values = agent(screens[rows])
            ratio = (policy.log_prob(actions[rows]) - old_log_probs[rows]).exp()
            gain = (gains[rows] - gains[rows].mean()) / (gains[rows].std() + 1e-8)
            gained = torch.min(gain * ratio, gain * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
            loss = -gained + 0.5 * (values - returns[rows]).square().mean() - ENTROPY * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
            optimizer.step()


def main() -> None:
    """Train, and print the mean of the episodes that ended between two updates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="QanLR-MNIST5k-v1", help="an id with Discrete actions, or one of GAMES")
    parser.add_argument("--steps", type=int, default=3200, help="of all rows together")
    parser.add_argument("--num-envs", type=int, default=8, help="rows")
    arguments = parser.parse_args()
    num_envs = arguments.num_envs
    batch_size = num_envs * ROLLOUT

    torch.manual_seed(SEED)
    envs = gym.make_vec(arguments.env, num_envs=num_envs, **GAMES.get(arguments.env, {}))
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, eps=1e-5)

    screens = torch.zeros(ROLLOUT + 1, *envs.observation_space.shape)
    actions, log_probs, rewards = (torch.zeros(ROLLOUT, num_envs) for _ in range(3))
    terminated, over, real = (torch.zeros(ROLLOUT, num_envs, dtype=torch.bool) for _ in range(3))
    screen, _ = envs.reset(seed=SEED)
    resets = torch.zeros(num_envs, dtype=torch.bool)  # the rows of which the next step is a reset
    for iteration in range(1, arguments.steps // batch_size + 1):
        ended = []
        for t in range(ROLLOUT):
            screens[t], real[t] = torch.from_numpy(screen), ~resets
            with torch.no_grad():
                policy, _ = agent(screens[t])
            actions[t] = action = policy.sample()
            log_probs[t] = policy.log_prob(action)
            screen, reward, terminations, truncations, infos = envs.step(action.numpy())
            rewards[t], terminated[t] = torch.from_numpy(reward), torch.from_numpy(terminations)
            over[t] = resets = torch.from_numpy(terminations | truncations)
            ended += [(infos["episode"]["r"][row], infos["test_accuracy"][row]) for row in resets.nonzero()[:, 0]]
        screens[ROLLOUT] = torch.from_numpy(screen)

        with torch.no_grad():
            _, values = agent(screens)
        gains = advantages(rewards, values, terminated, over)
        batch = (screens[:-1], actions, log_probs, gains, gains + values[:-1])
        update(agent, optimizer, tuple(part[real] for part in batch))
        if ended:
            score, accuracy = (sum(column) / len(ended) for column in zip(*ended, strict=True))
            about = f"{len(ended)} episodes, return {score:.3f}, test accuracy {accuracy:.1%}"
            print(f"step {iteration * batch_size}: {about}", flush=True)
    envs.close()


if __name__ == "__main__":
    main()
