"""An ensemble of DQNs that learn from one another's episodes, and act with caution where they disagree."""

import torch
from torch import Tensor

from qan_agents.dqn.agent import DQN
from qan_agents.dqn.config import DQNConfig
from qan_agents.dqn.vector_env import EnvInterface, Transitions


class Ensemble:
    """As many DQNs as environments: each plays its own row, and all learn from all rows.

    They differ in their initial weights and in what they draw from their replays, so they agree only where there is
    evidence. `choose` leaves a default action only for one that is better by a given number of standard deviations of
    the members' values: with few episodes most differences of values are noise. Sources: bootstrapped DQN,
    arXiv:1602.04621; safe policy improvement on a baseline, arXiv:1712.06924.

    It is trained by `qan_agents.dqn.train`, as a single DQN is.

    Attributes:
        members: the DQNs.
        interface, device: as a DQN's.
    """

    def __init__(
        self, config: DQNConfig, interface: EnvInterface, size: int, device: str = "cpu", seed: int = 0
    ) -> None:
        """Fresh members.

        Args:
            config: of every member.
            interface: of the environment that they will play.
            size: how many; the environment must have as many rows.
            device: as `torch.device` takes it.
            seed: those of the members follow from it.

        Raises:
            ValueError: the hyperparameters do not go with the environment.
        """
        self.members = [DQN(config, interface, device, seed * 1_000 + number) for number in range(size)]
        self.interface, self.device = interface, self.members[0].device

    @property
    def steps(self) -> int:
        """Steps of single environments, that it has learned from."""
        return self.members[0].steps

    def begin(self, frames: Tensor) -> None:
        """Begin an episode in every row.

        Args:
            frames: (N, D) the first of each.

        Raises:
            ValueError: N is not the number of members.
        """
        if len(frames) != len(self.members):
            raise ValueError(f"an ensemble of {len(self.members)} plays as many environments, not {len(frames)}")
        for member in self.members:
            member.begin(frames)

    def act(self) -> Tensor:
        """Actions (N,) in all rows, each of the row's own member, random ones as the schedule says."""
        actions = torch.stack([member.act()[row] for row, member in enumerate(self.members)])
        for member in self.members:
            member.actions.copy_(actions)  # which `remember` writes
        return actions

    def remember(self, transitions: Transitions) -> None:
        """Write the step that the last actions made to every replay, and go on to the next frames."""
        for member in self.members:
            member.remember(transitions)

    def learn(self) -> None:
        """Count a step of every environment, and do the updates of every member that are due."""
        for member in self.members:
            member.learn()

    def choose(self, observations: Tensor, default: int | None, caution: float) -> Tensor:
        """The actions (N,) of all members together.

        Args:
            observations: (N, history, D).
            default: the action to leave only for a better one; None: no action is.
            caution: by how many standard deviations of the members' values it must be better.
        """
        # The target networks: means of the last weights, steadier than the weights themselves.
        values = torch.stack([member.target_values(observations) for member in self.members])  # (K, N, actions)
        if default is None:
            return values.mean(dim=0).argmax(dim=1)
        advantage = values - values[:, :, default, None]  # (K, N, actions), 0 for the default itself
        gain, best = (advantage.mean(dim=0) - caution * advantage.std(dim=0)).max(dim=1)
        return torch.where(gain > 0, best, default)
