"""DQN of TorchRL, on its `GymEnv`: a collector, a replay buffer and `DQNLoss`.

python -m pip install -e ".[torchrl]" && python examples/torchrl_dqn.py --steps 1600
"""

import argparse

import torch
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, RewardSum, TransformedEnv
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate

import qan_gym  # noqa: F401 (registers the environments)

# Trainings of 40 actions, without the pull towards reference weights; {} is the game as registered, of 200.
GAME = {"epochs": 1, "meta_momentum": None}
EPISODE = 40
SEED = 1


def main() -> None:
    """Train, print every episode, and play one greedily."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1600)
    steps = parser.parse_args().steps

    torch.manual_seed(SEED)
    env = TransformedEnv(GymEnv("QanLR-MNIST5k-v1", categorical_action_encoding=True, **GAME), RewardSum())
    env.set_seed(SEED)
    size = env.observation_spec["observation"].shape[-1]
    network = MLP(in_features=size, out_features=env.action_spec.space.n, num_cells=[128, 64])
    actor = QValueActor(network, in_keys=["observation"], spec=env.action_spec)
    explorer = EGreedyModule(env.action_spec, eps_init=1.0, eps_end=0.05, annealing_num_steps=int(0.6 * steps))
    policy = TensorDictSequential(actor, explorer)

    loss = DQNLoss(actor, loss_function="smooth_l1", double_dqn=True)
    loss.make_value_estimator(gamma=0.99)
    target = SoftUpdate(loss, tau=0.01)
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-4)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(10_000), batch_size=64)

    collector = Collector(env, policy, frames_per_batch=EPISODE, total_frames=steps)
    for number, data in enumerate(collector, start=1):
        explorer.step(data.numel())
        replay.extend(data)
        for _ in range(data.numel()):
            optimizer.zero_grad()
            loss(replay.sample())["loss"].backward()
            optimizer.step()
            target.step()
        for score in data["next", "episode_reward"][data["next", "done"]]:
            print(f"step {number * EPISODE}: epsilon {explorer.eps.item():.2f}, return {score:.3f}", flush=True)
    collector.shutdown(close_env=False)

    with torch.no_grad():
        greedy = env.rollout(1_000, actor)  # to the end of the episode
    print(f"greedily: {len(greedy)} actions, return {greedy['next', 'episode_reward'][-1].item():.3f}")


if __name__ == "__main__":
    main()
