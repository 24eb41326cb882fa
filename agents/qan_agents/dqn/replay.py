"""The replay buffer of the bundled DQN: preallocated tensors on one device; nothing in it waits for the device."""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024  # places whose priorities are summed together
LEAST_PRIORITY = 1e-6  # added to every TD error, so that each transition can be drawn again


class Batch(NamedTuple):
    """Drawn transitions, of n steps each or up to the end of the episode.

    Attributes:
        observations: (B, history, D).
        actions: (B,) int64.
        rewards: (B,) the discounted sum over the steps.
        discounts: (B,) of the value of what follows; 0 where the episode terminated.
        following: (B, history, D) what is seen after the steps.
        weights: (B,) that correct for uneven drawing, at most 1.
        places: (B,) int64, where they lie, for `set_priorities`.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    following: Tensor
    weights: Tensor
    places: Tensor


def as_floats(frames: Tensor) -> Tensor:
    """Frames as networks take them: float32, bytes scaled to [0, 1]."""
    return frames / 255 if frames.dtype == torch.uint8 else frames.float()


class Replay:
    """The last transitions of N environments: a ring for each, of which only the single frames are held.

    Each environment has a cursor of its own, because a step that is not to be learned from (the reset of Gymnasium's
    NEXT_STEP mode) leaves its ring as it is. A place is `slot * N + row`.

    Source of prioritized drawing: Schaul et al., arXiv:1511.05952, proportional variant.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        frame_size: int,
        history: int,
        n_step: int,
        gamma: float,
        priority_exponent: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Reserve the memory.

        Args:
            capacity: transitions of all environments together; at least history + n_step of each are kept.
            num_envs: N.
            frame_size: D, numbers in a frame.
            history: frames in an observation.
            n_step: steps of a drawn transition.
            gamma: the discount of a step.
            priority_exponent: of the TD errors; 0 draws uniformly.
            dtype: of the frames in memory: float32, float16 or uint8.
            device: where it lies.
        """
        self.slots = max(capacity // num_envs, history + n_step)
        self.num_envs, self.history, self.n_step = num_envs, history, n_step
        self.priority_exponent = priority_exponent
        count = self.slots * num_envs
        self.frames = torch.zeros(count, frame_size, dtype=dtype, device=device)
        self.next_frames = torch.zeros_like(self.frames)
        self.actions = torch.zeros(count, dtype=torch.int64, device=device)
        self.rewards = torch.zeros(count, device=device)
        self.terminated = torch.zeros(count, dtype=torch.bool, device=device)
        self.ended = torch.zeros(count, dtype=torch.bool, device=device)
        self.age = torch.zeros(count, dtype=torch.int64, device=device)  # steps since the episode began
        self.cursor = torch.zeros(num_envs, dtype=torch.int64, device=device)  # the next slot of each row
        self.size = torch.zeros(num_envs, dtype=torch.int64, device=device)  # transitions of each row
        self.row = torch.arange(num_envs, device=device)
        self.back = torch.arange(history - 1, -1, -1, device=device)
        self.forth = torch.arange(n_step, device=device)
        self.ahead = torch.arange(1, history + 1, device=device)
        self.discount = gamma ** torch.arange(n_step + 1, device=device)  # (n_step + 1,)
        self.ones = torch.ones((), device=device)
        places = -(-count // BLOCK) * BLOCK if priority_exponent > 0 else 0
        self.priorities = torch.zeros(places, device=device)
        self.highest = torch.ones((), device=device)  # priority so far; new transitions get it

    def add(
        self,
        frames: Tensor,
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        ended: Tensor,
        following: Tensor,
        age: Tensor,
        played: Tensor,
    ) -> None:
        """Write a step of every environment; where `played` is False, nothing.

        Args:
            frames: (N, D) that were acted on.
            actions: (N,).
            rewards: (N,).
            terminated: (N,) bool, the episode ended and nothing follows.
            ended: (N,) bool, it terminated or was truncated.
            following: (N, D) what was seen then, the last frame of the episode where it ended.
            age: (N,) steps since the episode began.
            played: (N,) bool.
        """
        place = self.cursor * self.num_envs + self.row  # (N,)
        # Written in any case: where it was not played the cursor stays, and the next step writes over it. The ring's
        # oldest transition, which lay there, could not be drawn any more (see `_drawable`).
        self.frames[place] = frames.to(self.frames.dtype)
        self.next_frames[place] = following.to(self.frames.dtype)
        self.actions[place] = actions
        self.rewards[place] = rewards
        self.terminated[place] = terminated
        self.ended[place] = ended
        self.age[place] = age
        if self.priority_exponent > 0:
            self.priorities[place] = torch.where(played, self.highest, 0.0)
            # What is written over next, and those whose history that was.
            lost = (self.cursor[:, None] + self.ahead) % self.slots * self.num_envs + self.row[:, None]  # (N, history)
            self.priorities[lost] *= ~played[:, None]
        self.cursor.add_(played).remainder_(self.slots)
        self.size.add_(played).clamp_(max=self.slots)

    def cut(self) -> None:
        """What is added next does not follow on what was added last."""
        self.ended[self._place(self.row, torch.zeros_like(self.row))] = True

    def _drawable(self) -> Tensor:
        """(N,) the newest transitions of each row, whose history is whole; the place under the cursor is spare."""
        return self.size.clamp(max=self.slots - self.history)

    def _place(self, row: Tensor, behind: Tensor) -> Tensor:
        """Where the transition of a row lies that is `behind` steps older than its newest."""
        return (self.cursor[row] - 1 - behind) % self.slots * self.num_envs + row

    # --- drawing ----------------------------------------------------------------------------------------------------

    def sample(self, count: int, importance: Tensor | float, generator: torch.Generator) -> Batch:
        """Draw transitions.

        Args:
            count: B.
            importance: exponent of the weights, in [0, 1]; without meaning where drawing is uniform.
            generator: on the device.
        """
        if self.priority_exponent > 0:
            return self._batch(*self._draw_by_priority(count, importance, generator))
        return self._batch(self._draw_evenly(count, generator), self.ones.expand(count))

    def _draw_evenly(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) places, each transition alike likely."""
        upto = self._drawable().cumsum(0)  # (N,)
        chance = torch.rand(count, dtype=torch.float64, generator=generator, device=upto.device)
        number = (chance * upto[-1]).long()  # (count,)
        row = torch.searchsorted(upto, number, right=True)
        return self._place(row, upto[row] - number - 1)

    def _draw_by_priority(
        self, count: int, importance: Tensor | float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(count,) places, one from each of `count` equal parts of the sum of priorities; and their weights."""
        blocks = self.priorities.view(-1, BLOCK)
        upto = blocks.sum(dim=1, dtype=torch.float64).cumsum(0)  # (blocks,)
        chance = torch.rand(count, dtype=torch.float64, generator=generator, device=upto.device)
        part = (torch.arange(count, device=upto.device) + chance) / count * upto[-1]  # (count,)
        block = torch.searchsorted(upto, part, right=True).clamp_(max=len(upto) - 1)
        within = blocks[block].cumsum(dim=1, dtype=torch.float64)  # (count, BLOCK)
        rest = part - (upto[block] - within[:, -1])
        rest = torch.minimum(rest.clamp(min=0), within[:, -1] * (1 - 1e-12))  # rounding must not lead outside
        place = block * BLOCK + torch.searchsorted(within, rest[:, None], right=True)[:, 0]
        share = self.priorities[place] / upto[-1]
        weights = (share * self._drawable().sum()) ** -importance
        return place, (weights / weights.max()).float()

    def _batch(self, place: Tensor, weights: Tensor) -> Batch:
        last, rewards, discounts = self._look_ahead(place)
        following = as_floats(self.next_frames[last])[:, None]  # (B, 1, D)
        if self.history > 1:
            following = torch.cat([self._stack(last, self.history - 1), following], dim=1)
        return Batch(
            observations=self._stack(place, self.history),
            actions=self.actions[place],
            rewards=rewards,
            discounts=discounts.mul_(~self.terminated[last]),
            following=following,
            weights=weights,
            places=place,
        )

    def _look_ahead(self, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the n steps from each place end, their rewards' sum, and the discount of what follows, (B,) each."""
        if self.n_step == 1:
            return place, self.rewards[place], self.discount[1].repeat(len(place))
        row, slot = place % self.num_envs, place // self.num_envs  # (B,)
        newer = (self.cursor[row] - 1 - slot) % self.slots  # transitions after it in the ring
        walk = (slot[:, None] + self.forth) % self.slots * self.num_envs + row[:, None]  # (B, n_step)
        goes_on = (~self.ended[walk] & (newer[:, None] > self.forth))[:, :-1].cumprod(dim=1)  # (B, n_step - 1)
        steps = 1 + goes_on.sum(dim=1)  # (B,)
        rewards = (self.rewards[walk] * self.discount[:-1] * (self.forth < steps[:, None])).sum(dim=1)
        return walk.gather(1, steps[:, None] - 1)[:, 0], rewards, self.discount[steps]

    def _stack(self, place: Tensor, count: int) -> Tensor:
        """The last `count` frames at each place, (B, count, D); before an episode's first, the first, again."""
        if self.history == 1:
            return as_floats(self.frames[place])[:, None]
        back = torch.minimum(self.back[self.history - count :], self.age[place][:, None]) * self.num_envs  # (B, count)
        return as_floats(self.frames[(place[:, None] - back) % len(self.frames)])

    # --- priorities -------------------------------------------------------------------------------------------------

    def set_priorities(self, places: Tensor, td_errors: Tensor) -> None:
        """Note how wrong the values of transitions were, (B,)."""
        new = (td_errors.abs() + LEAST_PRIORITY) ** self.priority_exponent
        self.priorities[places] = new
        self.highest.copy_(torch.maximum(self.highest, new.max()))
