"""An ensemble of DQNs that learn from one another's episodes, and act with caution where they disagree."""

import os
from typing import Any

import torch
from torch import Tensor

from qan_agents.dqn.agent import DQN, damaged_or_other
from qan_agents.dqn.config import EnsembleConfig
from qan_agents.dqn.vector_env import EnvInterface, Transitions
from qan_gym.utils.files import load_arrays, save_arrays

FORMAT = "qan_agents.dqn ensemble 1"  # of the file of a saved ensemble


class Ensemble:
    """DQNs that take turns at playing, a row each, and all learn from all rows.

    They differ in their initial weights and in what they draw from their replays, so they agree only where there is
    evidence. `choose` leaves a default action only for one that is better by a given number of standard deviations of
    the members' values: with few episodes most differences of values are noise. Sources: bootstrapped DQN,
    arXiv:1602.04621; safe policy improvement on a baseline, arXiv:1712.06924.

    It is trained by `qan_agents.dqn.train`, as a single DQN is.

    Attributes:
        config: the hyperparameters.
        members: the DQNs.
        interface, device, own_settings: as a DQN's.
    """

    def __init__(self, config: EnsembleConfig, interface: EnvInterface, device: str = "cpu", seed: int = 0) -> None:
        """Fresh members.

        Args:
            config: the hyperparameters.
            interface: of the environment that they will play.
            device: as `torch.device` takes it.
            seed: those of the members follow from it.

        Raises:
            ValueError: the hyperparameters do not go with the environment.
        """
        self.config = config
        self.members = [DQN(config.of_member, interface, device, one) for one in self._seeds(seed)]
        self.interface, self.device, self.own_settings = interface, self.members[0].device, self.members[0].own_settings
        self._next = 0  # the member whose turn it is to play the first row of the next round

    def _seeds(self, seed: int) -> list[int]:
        return [seed * 1_000 + number for number in range(self.config.members)]

    @property
    def steps(self) -> int:
        """Steps of single environments, that it has learned from."""
        return self.members[0].steps

    @property
    def exploration(self) -> float:
        """The share of random actions that the schedule says now."""
        return self.members[0].exploration

    # --- playing and learning ---------------------------------------------------------------------------------------

    def reseed(self, seed: int) -> None:
        """Draw from now on what a seed says: explored actions, and transitions from the replays."""
        for member, own in zip(self.members, self._seeds(seed), strict=True):
            member.reseed(own)

    def begin(self, frames: Tensor) -> None:
        """Begin an episode in every row, each of which is the next member's.

        Args:
            frames: (N, D) the first of each.

        Raises:
            ValueError: N is not what it was at the first call.
        """
        for member in self.members:
            member.begin(frames)
        self._rows = torch.arange(len(frames), device=self.device)
        self._players = (self._next + self._rows) % len(self.members)  # (N,), the member of each row
        self._next = (self._next + len(frames)) % len(self.members)

    def act(self, epsilon: float | None = None) -> Tensor:
        """Actions (N,) in all rows, each of the row's own member; random ones as `DQN.act` says."""
        of_all = torch.stack([member.act(epsilon) for member in self.members])  # (K, N)
        actions = of_all[self._players, self._rows]
        for member in self.members:
            member.actions.copy_(actions)  # which `remember` writes
        return actions

    @property
    def actions(self) -> Tensor:
        """(N,) int64, the last ones."""
        return self.members[0].actions

    def remember(self, transitions: Transitions) -> None:
        """Write the step that the last actions made to every replay, and go on to the next frames."""
        for member in self.members:
            member.remember(transitions)

    def learn(self) -> None:
        """Count a step of every environment, and do the updates of every member that are due."""
        for member in self.members:
            member.learn()

    # --- values -----------------------------------------------------------------------------------------------------

    def values(self, observations: Tensor) -> Tensor:
        """Q(s, a), mean of the members', (B, actions), of float observations (B, history, D)."""
        return torch.stack([member.values(observations) for member in self.members]).mean(dim=0)

    def target_values(self, observations: Tensor) -> Tensor:
        """The same by the target networks: means of the last weights, steadier than the weights themselves."""
        return self._target_values(observations).mean(dim=0)

    def _target_values(self, observations: Tensor) -> Tensor:
        return torch.stack([member.target_values(observations) for member in self.members])  # (K, B, actions)

    def choose(self, observations: Tensor, default: int | None) -> Tensor:
        """The actions (B,) of all members together, by the target networks.

        Args:
            observations: (B, history, D).
            default: the action to leave only for one that is better by `config.caution` standard deviations of the
                members' values; None: the best action on average.
        """
        values = self._target_values(observations)
        if default is None:
            return values.mean(dim=0).argmax(dim=1)
        advantage = values - values[:, :, default, None]  # (K, B, actions), 0 for the default itself
        gain, best = (advantage.mean(dim=0) - self.config.caution * advantage.std(dim=0)).max(dim=1)
        return torch.where(gain > 0, best, default)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the replays' transitions to one safetensors file, atomically; nothing is pickled."""
        arrays: dict[str, Any] = {}
        abouts = []
        for number, member in enumerate(self.members):
            own, about = member.saved()
            arrays |= {f"{number}/{name}": array for name, array in own.items()}
            abouts.append(about)
        save_arrays(path, arrays, {"format": FORMAT, "members": abouts, "next": self._next})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what `save` wrote; the replays are empty.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, of something else, or of an ensemble for another environment or of other
                hyperparameters.
        """
        arrays, about = load_arrays(path)
        if about.get("format") != FORMAT:
            raise ValueError(f"{path}: not an ensemble saved by this version of qan_agents.dqn")
        with damaged_or_other(path):
            parts: list[dict[str, Any]] = [{} for _ in about["members"]]
            for name, array in arrays.items():
                number, _, own = name.partition("/")
                parts[int(number)][own] = array
            members = [
                DQN.restored(part, one, str(self.device)) for part, one in zip(parts, about["members"], strict=True)
            ]
            turn = int(about["next"])
        for member in members:
            if member.interface != self.interface:
                raise ValueError(f"{path}: is of an agent for {member.interface}, not for {self.interface}")
        if [member.config for member in members] != [member.config for member in self.members]:
            raise ValueError(f"{path}: is of an ensemble of other hyperparameters, or of {len(members)} members")
        self.members, self._next = members, turn
