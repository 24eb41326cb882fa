"""The bundled DQN: acting, replay, updates and files, on one device, as tensors.

On CUDA acting, the writing of the replay and the updates are captured graphs, and nothing makes the host wait.

Sources: Mnih et al., Nature 518 (2015); double DQN: arXiv:1509.06461; dueling: arXiv:1511.06581; prioritized replay:
arXiv:1511.05952; n-step: arXiv:1710.02298; quantiles: arXiv:1710.10044.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adam import adam

from qan_agents.dqn.config import STORAGE, DQNConfig
from qan_agents.dqn.losses import huber_loss, quantile_huber_loss, quantile_midpoints
from qan_agents.dqn.network import QNetwork, parameters_as_vector
from qan_agents.dqn.replay import PRIORITIES, TRANSITIONS, Batch, Replay, as_floats
from qan_agents.dqn.rmsprop import rmsprop_
from qan_agents.dqn.vector_env import EnvInterface, Transitions
from qan_gym.utils.cuda_graph import CapturedGraph
from qan_gym.utils.files import load_arrays, save_arrays
from qan_gym.utils.own_settings import in_own_settings, own_settings, threads_for
from qan_gym.utils.random_streams import drawing_from

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "rmsprop": ("mean", "mean_square")}  # by optimizer, one of each weight
GROUP = 32  # updates whose transitions are drawn together, at most
FORMAT = "qan_agents.dqn 2"  # of the file of a saved agent


class UpdateResult(NamedTuple):
    """The loss () and the TD errors (B,), target minus value, of an update, before it changed the weights."""

    loss: Tensor
    td_errors: Tensor


class DQN:
    """A deep Q network that plays N environments at once and learns from them.

    `qan_agents.dqn.train` runs the loop: `begin`, then `act`, `remember` and `learn` for each step.

    Attributes:
        config: the hyperparameters.
        interface: of the environment that it plays.
        device: of all its tensors.
        steps: of single environments, that it has learned from.
        updates: done so far.
        network, target: see `QNetwork`; `weights` and `target_weights` are their parameters as vectors.
        actions: (N,) int64, the last ones.
        facts: what was saved beside it.
        own_settings: of the process, that its calls compute under.
    """

    @own_settings()
    def __init__(self, config: DQNConfig, interface: EnvInterface, device: str = "cpu", seed: int = 0) -> None:
        """A fresh agent.

        Args:
            config: the hyperparameters.
            interface: of the environment that it will play.
            device: as `torch.device` takes it.
            seed: of its initial weights and its exploration.

        Raises:
            ValueError: the hyperparameters do not go with the environment.
        """
        interface.check(config)
        self.config, self.interface, self.device = config, interface, torch.device(device)
        self.steps = self.updates = 0
        self.facts: dict[str, Any] = {}
        self._replay: Replay | None = None
        with drawing_from(seed):  # on the host: the same on every device
            self.network = QNetwork(config, interface).to(self.device)
            self.target = QNetwork(config, interface).to(self.device).requires_grad_(False)
        self.weights, self.target_weights = parameters_as_vector(self.network), parameters_as_vector(self.target)
        self.target_weights.copy_(self.weights)
        self.own_settings = own_settings(threads_for(self.weights.numel()))
        self.gradient = torch.zeros_like(self.weights)  # as one vector: an update is a few operations, not hundreds
        offset = 0
        for parameter in self.network.parameters():
            parameter.grad = self.gradient[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        self.moments = [torch.zeros_like(self.weights) for _ in MOMENTS[config.optimizer]]
        self.optimizer_steps = torch.zeros((), device=self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.epsilon = torch.ones((), device=self.device)
        self.importance = torch.ones((), device=self.device)
        self.midpoints = quantile_midpoints(config.quantiles, self.device)

    @property
    def replay(self) -> Replay:
        """The last transitions.

        Raises:
            RuntimeError: no episode has begun.
        """
        if self._replay is None:
            raise RuntimeError("there is no replay before the first episode: call begin")
        return self._replay

    @property
    def members(self) -> list["DQN"]:
        """Itself alone; see `Ensemble.members`."""
        return [self]

    # --- acting -----------------------------------------------------------------------------------------------------

    def reseed(self, seed: int) -> None:
        """Draw from now on what a seed says: explored actions, and transitions from the replay."""
        self.generator.manual_seed(seed)

    @in_own_settings
    def begin(self, frames: Tensor) -> None:
        """Begin an episode in every row.

        Args:
            frames: (N, D) the first of each.

        Raises:
            ValueError: N is not what it was at the first call.
        """
        if self._replay is None:
            self._reserve(len(frames))
        if len(frames) != self.replay.num_envs:
            raise ValueError(f"the agent's replay is of {self.replay.num_envs} environments, not of {len(frames)}")
        self.replay.end_episodes()
        self.stack.copy_(frames[:, None].expand(-1, self.config.history, -1))
        self.age.zero_()

    def _reserve(self, num_envs: int) -> None:
        """Reserve the memory for N environments; capture what is done in it."""
        config, device = self.config, self.device
        size, dtype = self.interface.frame_size, self.interface.frame_dtype
        self._replay = Replay(
            config.buffer_size,
            num_envs,
            size,
            config.history,
            config.n_step,
            config.gamma,
            config.priority_exponent,
            STORAGE[config.storage],
            device,
        )
        self.stack = torch.zeros(num_envs, config.history, size, dtype=dtype, device=device)  # the last frames
        self.age = torch.zeros(num_envs, dtype=torch.int64, device=device)  # steps since the episode started
        self.actions = torch.zeros(num_envs, dtype=torch.int64, device=device)
        frames = torch.zeros(2, num_envs, size, dtype=dtype, device=device)
        flags = torch.zeros(4, num_envs, dtype=torch.bool, device=device)
        rewards = torch.zeros(num_envs, device=device)
        self._transitions = Transitions(frames[0], frames[1], rewards, flags[0], flags[1], flags[2], flags[3], {})
        self._act, self._write = self._captured(self._choose_actions), self._captured(self._write_transitions)
        self._update = cache(lambda count: self._captured(partial(self._update_group, count)))  # a graph for each count

    def _captured(self, function: Callable[[], None]) -> Callable[[], None]:
        return CapturedGraph(function, self.generator) if self.device.type == "cuda" else function

    @in_own_settings
    def act(self, epsilon: float | None = None) -> Tensor:
        """Actions (N,) in all rows, random ones with probability `epsilon`; None: as the schedule says."""
        self.epsilon.fill_(self.exploration if epsilon is None else epsilon)
        self._act()
        return self.actions

    @property
    def exploration(self) -> float:
        """The share of random actions that the schedule says now."""
        config = self.config
        if self.steps < config.learning_starts:
            return 1.0
        return _linear(config.exploration_initial, config.exploration_final, self.steps / config.exploration_steps)

    def _choose_actions(self) -> None:
        best = self.values(as_floats(self.stack)).argmax(dim=1)  # (N,)
        chance = torch.rand(best.shape, generator=self.generator, device=self.device)
        other = torch.randint(self.interface.actions, best.shape, generator=self.generator, device=self.device)
        torch.where(chance < self.epsilon, other, best, out=self.actions)

    @in_own_settings
    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """Q(s, a), (B, actions), of float observations (B, history, D)."""
        quantiles: Tensor = self.network(observations)
        return quantiles.mean(dim=2)

    @in_own_settings
    @torch.no_grad()
    def target_values(self, observations: Tensor) -> Tensor:
        """Q(s, a) of the target network, (B, actions), of float observations (B, history, D)."""
        quantiles: Tensor = self.target(observations)
        return quantiles.mean(dim=2)

    # --- remembering ------------------------------------------------------------------------------------------------

    @in_own_settings
    def remember(self, transitions: Transitions) -> None:
        """Write the step that the last actions made to the replay, and go on to the next frames."""
        if self.device.type == "cuda":  # where the captured graph reads it
            for kept, new in zip(self._transitions[:-1], transitions[:-1], strict=True):
                kept.copy_(new)
        else:
            self._transitions = transitions
        self._write()

    def _write_transitions(self) -> None:
        new = self._transitions
        self.replay.add(
            self.stack[:, -1],
            self.actions,
            new.rewards,
            new.terminated,
            new.ended,
            new.next_frames,
            self.age,
            new.valid,
        )
        if self.config.history > 1:
            earlier = torch.where(new.starts[:, None, None], new.frames[:, None], self.stack[:, 1:])
            self.stack[:, :-1] = earlier
        self.stack[:, -1] = new.frames
        self.age.add_(1).masked_fill_(new.starts, 0)

    # --- learning ---------------------------------------------------------------------------------------------------

    @in_own_settings
    def learn(self) -> None:
        """Count a step of every environment, and do the updates that are due."""
        config, num_envs = self.config, self.replay.num_envs
        before, self.steps = self.steps, self.steps + num_envs
        if self.steps // num_envs % max(config.target_update_interval // num_envs, 1) == 0:
            self.target_weights.lerp_(self.weights, config.tau)
        if self.steps > config.learning_starts:
            self.update((self.steps // config.update_every - before // config.update_every) * config.gradient_steps)

    @in_own_settings
    def update(self, count: int = 1) -> None:
        """Do `count` updates on transitions drawn from the replay."""
        config = self.config
        if config.priority_exponent > 0:
            self.importance.fill_(_linear(config.importance_initial, 1.0, self.steps / config.importance_steps))
        self.updates += count
        while count > 0:
            group = min(count, GROUP)
            self._update(group)()
            count -= group

    @torch.no_grad()
    def _update_group(self, count: int) -> None:
        """Updates whose transitions are drawn together, and their targets too where the updates do not change them."""
        config = self.config
        drawn = self.replay.sample(count * config.batch_size, self.importance, self.generator)
        parts = [values.split(config.batch_size) for values in drawn]
        targets = None if config.double else self._targets(drawn).split(config.batch_size)
        errors = []
        for number in range(count):
            batch = Batch(*(part[number] for part in parts))
            errors.append(self.gradient_step(batch, None if targets is None else targets[number]).td_errors)
        if config.priority_exponent > 0:
            self.replay.set_priorities(drawn.places, torch.cat(errors))

    @in_own_settings
    @torch.no_grad()
    def gradient_step(self, batch: Batch, targets: Tensor | None = None) -> UpdateResult:
        """One step of the optimizer; the replay stays as it is.

        Args:
            batch: as drawn from the replay.
            targets: (B, quantiles), where they are known.
        """
        config = self.config
        if targets is None:
            targets = self._targets(batch)
        self.gradient.zero_()
        values, backward = self.network.forward_and_backward(batch.observations)  # (B, actions, quantiles)
        index = batch.actions.view(-1, 1, 1).expand(-1, 1, config.quantiles)
        taken = values.gather(1, index).squeeze(1)  # (B, quantiles), of the actions that were taken
        error = targets - taken
        losses, gradients = self._loss(taken, targets, error)
        if config.priority_exponent > 0:
            losses, gradients = losses * batch.weights[:, None], gradients * batch.weights[:, None]
        backward(torch.zeros_like(values).scatter_(1, index, gradients.div_(len(gradients))[:, None]))
        if config.max_grad_norm is not None:
            self.gradient.mul_(config.max_grad_norm / self.gradient.norm().clamp_(min=config.max_grad_norm))
        self._optimizer_step()
        return UpdateResult(losses.mean(), error.squeeze(1) if config.quantiles == 1 else error.mean(dim=1))

    def _loss(self, values: Tensor, targets: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (B, 1), and their gradients with respect to the values (B, quantiles)."""
        threshold = self.config.clip_td_error
        if self.config.quantiles == 1 or threshold is None:
            return huber_loss(error, threshold)
        return quantile_huber_loss(values, targets, self.midpoints, threshold)

    @torch.no_grad()
    def _targets(self, batch: Batch) -> Tensor:
        """r + discount * Q'(s', best action), (B, quantiles)."""
        next_values: Tensor = self.target(batch.next_observations)  # (B, actions, quantiles)
        choice: Tensor = self.network(batch.next_observations) if self.config.double else next_values
        best = choice.mean(dim=2).argmax(dim=1)  # (B,)
        value = next_values.gather(1, best[:, None, None].expand(-1, 1, self.config.quantiles))[:, 0]  # (B, quantiles)
        return batch.rewards[:, None] + batch.discounts[:, None] * value

    def _optimizer_step(self) -> None:
        config, (first, second) = self.config, self.moments
        if config.optimizer == "rmsprop":
            rmsprop_(self.weights, self.gradient, first, second, config.learning_rate, config.optimizer_epsilon)
            return
        # Torch's function: its class takes longer than the step itself.
        adam(
            [self.weights],
            [self.gradient],
            [first],
            [second],
            [],
            [self.optimizer_steps],
            lr=config.learning_rate,
            beta1=0.9,
            beta2=0.999,
            eps=config.optimizer_epsilon,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
            fused=True,
            capturable=self.device.type == "cuda",
        )

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, with_replay: bool = False, **facts: Any) -> None:
        """Write everything to one safetensors file, atomically; nothing is pickled.

        Args:
            path: of the file.
            with_replay: whether also the replay's transitions.
            facts: JSON-able values that `load` gives back in `facts`.
        """
        arrays, about = self.saved(with_replay)
        save_arrays(path, arrays, {"format": FORMAT, **about, "facts": facts})

    def saved(self, with_replay: bool = False) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """What `restored` makes the agent of again: arrays, and what JSON holds.

        with_replay: whether also the replay's transitions.
        """
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"target/{name}": value for name, value in self.target.state_dict().items()}
        names = MOMENTS[self.config.optimizer]
        tensors |= {f"optimizer/{name}": value for name, value in zip(names, self.moments, strict=True)}
        tensors["optimizer_steps"] = self.optimizer_steps
        tensors["generator"] = self.generator.get_state()
        if self._replay is not None:
            kept = (*PRIORITIES, *(TRANSITIONS if with_replay else ()))
            tensors |= {f"replay/{name}": getattr(self._replay, name) for name in kept}
        about = {
            "config": asdict(self.config),
            "interface": asdict(self.interface),
            "steps": self.steps,
            "updates": self.updates,
            "num_envs": None if self._replay is None else self._replay.num_envs,
        }
        return {name: value.detach().cpu().numpy() for name, value in tensors.items()}, about

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> "DQN":
        """An agent as `save` left it, its replay empty if that was not saved; `facts` has what was saved beside it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or of something else.
        """
        arrays, about = load_arrays(path)
        if about.get("format") != FORMAT:
            raise ValueError(f"{path}: not an agent saved by this version of qan_agents.dqn")
        with damaged_or_other(path):
            agent = cls.restored(arrays, about, device)
            agent.facts = about["facts"]
        return agent

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]], about: dict[str, Any], device: str) -> "DQN":
        """The agent that `saved` gave these of.

        Raises:
            KeyError, TypeError, RuntimeError, ValueError: they are not what it gave.
        """
        agent = cls(DQNConfig(**about["config"]), EnvInterface(**about["interface"]), device)
        agent.steps, agent.updates = int(about["steps"]), int(about["updates"])
        agent._restore(arrays, about["num_envs"])
        return agent

    def _restore(self, arrays: Mapping[str, NDArray[Any]], num_envs: int | None) -> None:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

        def part(folder: str) -> dict[str, Tensor]:
            start = folder + "/"
            return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}

        self.network.load_state_dict(part("network"))
        self.target.load_state_dict(part("target"))
        for name, moment in zip(MOMENTS[self.config.optimizer], self.moments, strict=True):
            moment.copy_(tensors[f"optimizer/{name}"])
        self.optimizer_steps.copy_(tensors["optimizer_steps"])
        self.generator.set_state(tensors["generator"])
        if num_envs is not None:
            self._reserve(num_envs)
            for name, value in part("replay").items():
                getattr(self.replay, name).copy_(value)


@contextmanager
def damaged_or_other(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file from which no agent can be restored.

    Raises:
        ValueError: instead of what `DQN.restored` raises.
    """
    try:
        yield
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: damaged, or of another version of qan_agents.dqn ({error})") from error


def _linear(start: float, end: float, share: float) -> float:
    """From start to end in the share, and the end after it."""
    return start + min(share, 1.0) * (end - start)
