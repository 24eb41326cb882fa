"""Several of the bundled DQN that learn from one another's games, and act with caution where they disagree."""

import torch
from torch import Tensor

from qan_agents.dqn.agent import DQN, DQNConfig, Game, Outcome


class Ensemble:
    """As many DQNs as environments: each plays its own row, and all learn from all rows.

    They differ in their initial weights and in what they draw from their replays, so they agree only where there is
    evidence. `choose` leaves a default action only for one that is better by so many standard deviations of their
    opinions: with few episodes most differences of values are noise. Sources: bootstrapped DQN, arXiv:1602.04621; safe
    policy improvement on a baseline, arXiv:1712.06924.

    It is trained by `qan_agents.dqn.agent.train`, as a single DQN is.

    Attributes:
        members: the DQNs.
        game, device: as a DQN's.
    """

    def __init__(self, config: DQNConfig, game: Game, size: int, device: str = "cpu", seed: int = 0) -> None:
        """Fresh members.

        Args:
            config: of every member.
            game: of the environment that they will play.
            size: how many; the environment must have as many rows.
            device: as `torch.device` takes it.
            seed: those of the members follow from it.

        Raises:
            ValueError: the hyperparameters do not go with the game.
        """
        self.members = [DQN(config, game, device, seed * 1_000 + number) for number in range(size)]
        self.game, self.device = game, self.members[0].device

    @property
    def steps(self) -> int:
        """Steps done so far, of all environments."""
        return self.members[0].steps

    def begin(self, frames: Tensor) -> None:
        """Begin an episode in every row.

        Args:
            frames: (N, D) the first.

        Raises:
            ValueError: N is not the number of members.
        """
        if len(frames) != len(self.members):
            raise ValueError(f"an ensemble of {len(self.members)} plays as many environments, not {len(frames)}")
        for member in self.members:
            member.begin(frames)

    def act(self) -> Tensor:
        """Actions (N,) for the rows as they stand, of each row's own member, random ones by the schedule."""
        actions = torch.stack([member.act()[row] for row, member in enumerate(self.members)])
        for member in self.members:
            member.actions.copy_(actions)  # which it is to remember
        return actions

    def remember(self, outcome: Outcome) -> None:
        """Keep what came of the last actions, and go on to the next frames."""
        for member in self.members:
            member.remember(outcome)

    def learn(self) -> None:
        """Count a step of every environment, and do the updates of every member that are due."""
        for member in self.members:
            member.learn()

    def choose(self, observations: Tensor, default: int | None, caution: float) -> Tensor:
        """The actions (N,) of all members together.

        Args:
            observations: (N, history, D).
            default: the action to leave only for a better one; None: no action is.
            caution: by how many standard deviations of the members' opinions it must be better.
        """
        # The target networks: means of the last weights, steadier than the weights themselves.
        values = torch.stack([member.target_values(observations) for member in self.members])  # (K, N, actions)
        if default is None:
            return values.mean(dim=0).argmax(dim=1)
        better = values - values[:, :, default, None]  # (K, N, actions), 0 for the default itself
        gain, best = (better.mean(dim=0) - caution * better.std(dim=0)).max(dim=1)
        return torch.where(gain > 0, best, default)
