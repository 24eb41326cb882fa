"""The replay buffer of the bundled DQN: preallocated tensors on one device; nothing in it waits for the device."""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024  # places whose priorities are summed together
# The tensors of a replay.
TRANSITIONS = ("frames", "next_frames", "actions", "rewards", "terminated", "ended", "age", "cursor", "size")
PRIORITIES = ("priorities", "max_priority")
LEAST_PRIORITY = 1e-6  # added to every TD error, so that each transition can be drawn again


class Batch(NamedTuple):
    """Drawn transitions, of n steps each or up to the end of the episode.

    Attributes:
        observations: (B, history, D).
        actions: (B,) int64.
        rewards: (B,) the discounted sum over the steps.
        discounts: (B,) of the value of the next observation; 0 where the episode terminated.
        next_observations: (B, history, D) after the steps.
        weights: (B,) of importance sampling, at most 1.
        places: (B,) int64, where the transitions lie, for `set_priorities`.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    next_observations: Tensor
    weights: Tensor
    places: Tensor


def as_floats(frames: Tensor) -> Tensor:
    """Frames as networks take them: float32, bytes scaled to [0, 1]."""
    return frames / 255 if frames.dtype == torch.uint8 else frames.float()


class Replay:
    """The last transitions of N environments: a ring for each, which holds single frames and stacks them when drawn.

    Each environment has a cursor of its own, because a step that is no transition (the reset of Gymnasium's NEXT_STEP
    mode) leaves its ring as it is. A place is `slot * N + row`.

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
            device: of all tensors.
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
        self.age = torch.zeros(count, dtype=torch.int64, device=device)  # steps since the episode started
        self.cursor = torch.zeros(num_envs, dtype=torch.int64, device=device)  # the next slot of each row
        self.size = torch.zeros(num_envs, dtype=torch.int64, device=device)  # transitions of each row
        places = -(-count // BLOCK) * BLOCK if priority_exponent > 0 else 0
        self.priorities = torch.zeros(places, device=device)
        self.max_priority = torch.ones((), device=device)  # so far; new transitions get it
        # Constants, made once.
        self._rows = torch.arange(num_envs, device=device)
        self._history_offsets = torch.arange(history - 1, -1, -1, device=device)
        self._step_offsets = torch.arange(n_step, device=device)
        self._overwritten_offsets = torch.arange(1, history + 1, device=device)
        self._discounts = gamma ** torch.arange(n_step + 1, device=device)  # (n_step + 1,)
        self._one = torch.ones((), device=device)

    def add(
        self,
        frames: Tensor,
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        ended: Tensor,
        next_frames: Tensor,
        age: Tensor,
        valid: Tensor,
    ) -> None:
        """Write a step of every environment; nothing in the rows where `valid` is False.

        Args:
            frames: (N, D) that were acted on.
            actions: (N,).
            rewards: (N,).
            terminated: (N,) bool, the episode ended and the next frame has no value.
            ended: (N,) bool, it terminated or was truncated.
            next_frames: (N, D) seen after the action, the last frame of the episode where it ended.
            age: (N,) steps since the episode started.
            valid: (N,) bool.
        """
        place = self.cursor * self.num_envs + self._rows  # (N,)
        # Written in any case: where it is not valid the cursor stays, and the next step writes over it. The ring's
        # oldest transition, which lay there, could not be drawn any more (see `_drawable`).
        self.frames[place] = frames.to(self.frames.dtype)
        self.next_frames[place] = next_frames.to(self.frames.dtype)
        self.actions[place] = actions
        self.rewards[place] = rewards
        self.terminated[place] = terminated
        self.ended[place] = ended
        self.age[place] = age
        if self.priority_exponent > 0:
            self.priorities[place] = torch.where(valid, self.max_priority, 0.0)
            # The next place is overwritten next, and those after it have lost a frame of their history.
            slots = (self.cursor[:, None] + self._overwritten_offsets) % self.slots  # (N, history)
            self.priorities[slots * self.num_envs + self._rows[:, None]] *= ~valid[:, None]
        self.cursor.add_(valid).remainder_(self.slots)
        self.size.add_(valid).clamp_(max=self.slots)

    def end_episodes(self) -> None:
        """End the episode of every row: the next transition does not continue the newest one."""
        self.ended[self._place(self._rows, torch.zeros_like(self._rows))] = True

    def _drawable(self) -> Tensor:
        """(N,) the newest transitions of each row, whose history is whole; the place under the cursor is spare."""
        return self.size.clamp(max=self.slots - self.history)

    def _place(self, row: Tensor, age: Tensor) -> Tensor:
        """The place of the transition of a row that is `age` steps older than its newest."""
        return (self.cursor[row] - 1 - age) % self.slots * self.num_envs + row

    # --- drawing ----------------------------------------------------------------------------------------------------

    def sample(self, count: int, importance: Tensor | float, generator: torch.Generator) -> Batch:
        """Draw transitions.

        Args:
            count: B.
            importance: exponent of the weights, in [0, 1]; without meaning where draws are uniform.
            generator: on the device.
        """
        if self.priority_exponent > 0:
            return self._batch(*self._draw_by_priority(count, importance, generator))
        return self._batch(self._draw_uniformly(count, generator), self._one.expand(count))

    def _draw_uniformly(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) places."""
        cumulated = self._drawable().cumsum(0)  # (N,)
        chance = torch.rand(count, dtype=torch.float64, generator=generator, device=cumulated.device)
        number = (chance * cumulated[-1]).long()  # (count,)
        row = torch.searchsorted(cumulated, number, right=True)
        return self._place(row, cumulated[row] - number - 1)

    def _draw_by_priority(
        self, count: int, importance: Tensor | float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(count,) places, one from each of `count` equal parts of the sum of priorities; and their weights."""
        blocks = self.priorities.view(-1, BLOCK)
        cumulated = blocks.sum(dim=1, dtype=torch.float64).cumsum(0)  # (blocks,)
        chance = torch.rand(count, dtype=torch.float64, generator=generator, device=cumulated.device)
        part = (torch.arange(count, device=cumulated.device) + chance) / count * cumulated[-1]  # (count,)
        block = torch.searchsorted(cumulated, part, right=True).clamp_(max=len(cumulated) - 1)
        within = blocks[block].cumsum(dim=1, dtype=torch.float64)  # (count, BLOCK)
        rest = part - (cumulated[block] - within[:, -1])
        rest = torch.minimum(rest.clamp(min=0), within[:, -1] * (1 - 1e-12))  # rounding must not lead outside
        place = block * BLOCK + torch.searchsorted(within, rest[:, None], right=True)[:, 0]
        share = self.priorities[place] / cumulated[-1]
        weights: Tensor = (share * self._drawable().sum()) ** -importance
        return place, (weights / weights.max()).float()

    def _batch(self, place: Tensor, weights: Tensor) -> Batch:
        last, rewards, discounts = self._n_steps(place)
        next_observations = as_floats(self.next_frames[last])[:, None]  # (B, 1, D)
        if self.history > 1:
            next_observations = torch.cat([self._stack(last, self.history - 1), next_observations], dim=1)
        return Batch(
            observations=self._stack(place, self.history),
            actions=self.actions[place],
            rewards=rewards,
            discounts=discounts.mul_(~self.terminated[last]),
            next_observations=next_observations,
            weights=weights,
            places=place,
        )

    def _n_steps(self, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The last place of the n steps from each place, the sum of their rewards, the discount after them; (B,)."""
        if self.n_step == 1:
            return place, self.rewards[place], self._discounts[1].repeat(len(place))
        row, slot = place % self.num_envs, place // self.num_envs  # (B,)
        newer = (self.cursor[row] - 1 - slot) % self.slots  # transitions after it in the ring
        steps = (slot[:, None] + self._step_offsets) % self.slots * self.num_envs + row[:, None]  # (B, n_step)
        goes_on = (~self.ended[steps] & (newer[:, None] > self._step_offsets))[:, :-1].cumprod(dim=1)
        count = 1 + goes_on.sum(dim=1)  # (B,)
        discounted = self.rewards[steps] * self._discounts[:-1] * (self._step_offsets < count[:, None])
        return steps.gather(1, count[:, None] - 1)[:, 0], discounted.sum(dim=1), self._discounts[count]

    def _stack(self, place: Tensor, count: int) -> Tensor:
        """The last `count` frames at each place, (B, count, D); before an episode's first frame, it is repeated."""
        if self.history == 1:
            return as_floats(self.frames[place])[:, None]
        offsets = torch.minimum(self._history_offsets[self.history - count :], self.age[place][:, None])  # (B, count)
        return as_floats(self.frames[(place[:, None] - offsets * self.num_envs) % len(self.frames)])

    # --- priorities -------------------------------------------------------------------------------------------------

    def set_priorities(self, places: Tensor, td_errors: Tensor) -> None:
        """Set the priorities of transitions from the TD errors of their last update, (B,) each."""
        new: Tensor = (td_errors.abs() + LEAST_PRIORITY) ** self.priority_exponent
        self.priorities[places] = new
        self.max_priority.copy_(torch.maximum(self.max_priority, new.max()))
