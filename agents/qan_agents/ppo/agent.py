"""The bundled PPO: acting, rounds, updates and files, on one device, as tensors; nothing makes the host wait.

Sources: Schulman et al., arXiv:1707.06347; advantages: arXiv:1506.02438; a value network that sees more than the
policy: arXiv:1710.06542; what matters in practice: arXiv:2005.12729, arXiv:2006.05990.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adam import adam

from qan_agents.dqn.network import parameters_as_vector
from qan_agents.dqn.vector_env import Transitions
from qan_agents.ppo.actions import distribution_of
from qan_agents.ppo.config import PPOConfig
from qan_agents.ppo.interface import PPOInterface
from qan_agents.ppo.network import ClassTrunk, RunningNorm, Trunk, forgotten
from qan_agents.ppo.rollout import Batch, Rollout, Steps, advantages_of, minibatches, relative
from qan_gym.utils.files import load_arrays, save_arrays
from qan_gym.utils.own_settings import in_own_settings, own_settings, threads_for
from qan_gym.utils.random_streams import drawing_from

FORMAT = "qan_agents.ppo 1"  # of the file of a saved agent
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, one of each weight
EXPLAINED = "explained_variance"  # the name of a metric


class UpdateResult(NamedTuple):
    """Means over a mini-batch, before the update changed the weights; tensors ().

    Attributes:
        policy_loss: minus the clipped objective.
        value_loss: mean squared error of the value.
        entropy: of the policy, nats.
        kl: divergence of the policy from the one that played, estimated from the actions.
        clip_fraction: share of actions whose probability ratio was outside the clip.
    """

    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    kl: Tensor
    clip_fraction: Tensor


class ActorCritic(nn.Module):
    """The policy, the value network, and the scales of what they see: everything that is learned."""

    def __init__(self, config: PPOConfig, interface: PPOInterface) -> None:
        """Build networks with initial weights from torch's default generator."""
        super().__init__()
        self.features = interface.features(config.features)  # has no weights
        observation, inputs = self.features.size, len(interface.inputs)
        self.distribution = distribution_of(interface.actions, config.initial_log_std, config.learn_std)
        body = (config.hidden, config.activation)
        widths = interface.widths if config.by_class else ()
        self.policy: Trunk
        self.critic: Trunk
        if config.by_class:
            self.policy = ClassTrunk(widths, *body, head_gain=0.01)
            self.critic = ClassTrunk((*widths, *(1,) * inputs), *body, head_gain=1.0, pooled=True)
        else:
            outputs = self.distribution.outputs
            self.policy = Trunk(observation, *body, config.recurrent, outputs, head_gain=0.01)
            self.critic = Trunk(observation + inputs, *body, config.recurrent, 1, head_gain=1.0)
        self.observation_norm = RunningNorm(observation, config.observation_clip, widths)
        self.input_norm = RunningNorm(inputs, config.observation_clip)


class PPO:
    """An agent that plays N environments at once and learns from them by proximal policy optimisation.

    `qan_agents.ppo.train` runs the loop: `begin`, then `act`, `remember` and `learn` for each step.

    Attributes:
        config: the hyperparameters.
        interface: of the environment that it plays.
        device: of all its tensors.
        steps: of single environments, that it has learned from.
        rounds: of updates, done so far.
        network: see `ActorCritic`; `weights` are its parameters as a vector.
        actions: the last ones, as `TensorVectorEnv.step` takes them.
        facts: what was saved beside it.
        own_settings: of the process, that its calls compute under.
    """

    @own_settings()
    def __init__(self, config: PPOConfig, interface: PPOInterface, device: str = "cpu", seed: int = 0) -> None:
        """A fresh agent.

        Args:
            config: the hyperparameters.
            interface: of the environment that it will play.
            device: as `torch.device` takes it.
            seed: of its initial weights and its actions.

        Raises:
            ValueError: the hyperparameters do not go with the environment.
        """
        interface.check(config)
        self.config, self.interface, self.device = config, interface, torch.device(device)
        self.steps = self.rounds = 0
        self.facts: dict[str, Any] = {}
        with drawing_from(seed):  # on the host: the same on every device
            self.network = ActorCritic(config, interface).to(self.device)
        self.weights = parameters_as_vector(self.network)
        self.own_settings = own_settings(threads_for(self.weights.numel()))
        self.gradient = torch.zeros_like(self.weights)  # as one vector: an update is a few operations, not hundreds
        offset = 0
        for parameter in self.network.parameters():
            parameter.grad = self.gradient[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        self.moments = [torch.zeros_like(self.weights) for _ in range(2)]
        self.optimizer_steps = torch.zeros((), device=self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.last_round = {name: torch.zeros((), device=self.device) for name in (*UpdateResult._fields, EXPLAINED)}
        self._rollout: Rollout | None = None

    @property
    def rollout(self) -> Rollout:
        """The steps of this round so far.

        Raises:
            RuntimeError: no episode has begun.
        """
        if self._rollout is None:
            raise RuntimeError("there are no steps before the first episode: call begin")
        return self._rollout

    # --- acting -----------------------------------------------------------------------------------------------------

    @in_own_settings
    def begin(self, frames: Tensor, infos: Mapping[str, Any] | None = None) -> None:
        """Begin an episode in every row. Episodes that were going on are cut, as by a truncation.

        Args:
            frames: (N, D) the first of each.
            infos: of the reset, where there are privileged inputs.

        Raises:
            ValueError: N is not what it was in the round so far, or there are no such privileged inputs.
        """
        num_envs, interface = len(frames), self.interface
        if interface.privileged is not None and interface.privileged not in (infos or {}):
            raise ValueError(f"the value network also sees infos[{interface.privileged!r}]: give the reset's infos")
        self._reserve(num_envs)
        self.rollout.cut()
        everywhere = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        none = torch.zeros(num_envs, len(interface.inputs), device=self.device)
        self._see(frames, interface.privileged_inputs(infos or {}, none), starts=everywhere, counted=everywhere)

    def _reserve(self, num_envs: int) -> None:
        """Reserve the memory for a round of N rows, unless a round of as many goes on."""
        config, device = self.config, self.device
        config.check_rows(num_envs)
        if self._rollout is not None:
            before = self._rollout.memories.shape[1]
            if before == num_envs:
                return
            if self._rollout.length > 0:
                raise ValueError(f"the round that goes on is of {before} environments, not of {num_envs}")
        self.memory = torch.zeros(num_envs, config.recurrent, device=device)  # of the policy, before the next step
        flag = torch.zeros(num_envs, dtype=torch.bool, device=device)
        number = torch.zeros(num_envs, device=device)
        observation = torch.zeros(num_envs, self.network.features.size, device=device)
        inputs = torch.zeros(num_envs, len(self.interface.inputs), device=device)
        distribution = self.network.distribution
        action = distribution.mode(torch.zeros(num_envs, distribution.outputs, device=device))  # for its shape
        step = Steps(observation, inputs, flag, action, number, number, observation, inputs, flag, flag, flag)
        self._rollout = Rollout(config.steps_per_round, step, torch.stack([self.memory, self.memory]))

    @torch.no_grad()
    def _see(self, frames: Tensor, inputs: Tensor, starts: Tensor, counted: Tensor) -> None:
        """Go on to frames (N, D) and raw privileged inputs (N, E).

        Args:
            frames: to act on next.
            inputs: likewise.
            starts: (N,) bool, they are the first of an episode.
            counted: (N,) bool, they will be acted on: not the last frames of NEXT_STEP mode.
        """
        network, observations = self.network, self._observed(frames)
        self.raw_inputs, self.starts = inputs, starts
        if self.config.normalise_observations:
            network.observation_norm.observe(observations, counted)
            network.input_norm.observe(inputs, counted)
        self.observations, self.inputs = self._scaled(observations, inputs)

    def _observed(self, frames: Tensor) -> Tensor:
        """(B, D) -> (B, F)."""
        observations: Tensor = self.network.features(frames[:, None].float())
        return observations

    def _scaled(self, observations: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.normalise_observations:
            return observations, inputs
        return self.network.observation_norm(observations), self.network.input_norm(inputs)

    @in_own_settings
    @torch.no_grad()
    def act(self, deterministic: bool = False) -> Tensor:
        """Actions in all rows, drawn from the policy or its likeliest, as `TensorVectorEnv.step` takes them."""
        distribution = self.network.distribution
        outputs, self.next_memory = self.network.policy.step(self.observations, forgotten(self.memory, self.starts))
        self.chosen = distribution.mode(outputs) if deterministic else distribution.sample(outputs, self.generator)
        self.log_probs = distribution.log_prob(outputs, self.chosen)
        self.actions = distribution.played(self.chosen)
        return self.actions

    @in_own_settings
    @torch.no_grad()
    def choose(self, frames: Tensor, memory: Tensor | None = None, deterministic: bool = True) -> tuple[Tensor, Tensor]:
        """Actions of rows that are not learned from.

        Args:
            frames: (B, D).
            memory: (B, H) after the step before; 0 where an episode starts; None: in all rows.
            deterministic: the likeliest actions, not drawn ones.

        Returns:
            The actions as `TensorVectorEnv.step` takes them, and the memory after the step.
        """
        if memory is None:
            memory = torch.zeros(len(frames), self.config.recurrent, device=self.device)
        observations = self._observed(frames)
        if self.config.normalise_observations:
            observations = self.network.observation_norm(observations)
        outputs, memory = self.network.policy.step(observations, memory)
        distribution = self.network.distribution
        chosen = distribution.mode(outputs) if deterministic else distribution.sample(outputs, self.generator)
        return distribution.played(chosen), memory

    # --- remembering ------------------------------------------------------------------------------------------------

    @in_own_settings
    @torch.no_grad()
    def remember(self, transitions: Transitions) -> None:
        """Keep the step that the last actions made, and go on to the next frames."""
        new, interface = transitions, self.interface
        step = (self.observations, self.inputs, self.starts, self.chosen, self.log_probs, new.rewards)
        raw_inputs = interface.privileged_inputs(new.infos, self.raw_inputs)
        last_inputs = raw_inputs
        if new.next_frames is not new.frames:  # SAME_STEP mode: where an episode ended, the infos are of the next one
            final = interface.privileged_inputs(new.infos.get("final_info", {}), self.raw_inputs)
            last_inputs = torch.where(new.ended[:, None], final, raw_inputs)
        self.memory = self.next_memory
        counted = ~new.ended | new.starts  # the last frame of NEXT_STEP mode is acted on in vain
        self._see(new.frames, raw_inputs, new.starts, counted)
        next_step = self._scaled(self._observed(new.next_frames), last_inputs)
        self.rollout.add(Steps(*step, *next_step, new.terminated, new.ended, new.valid))

    # --- learning ---------------------------------------------------------------------------------------------------

    @in_own_settings
    def learn(self) -> None:
        """Count a step of every environment, and do the updates that are due."""
        self.steps += len(self.starts)
        if self.rollout.is_full:
            self.update()

    @in_own_settings
    def update(self) -> None:
        """Learn from the steps of the round, and begin the next one."""
        config, rollout = self.config, self.rollout
        learning_rate = self.learning_rate
        batch, critic_memory, explained = self._batch()
        stopped, results = torch.zeros((), device=self.device), []
        for _ in range(config.epochs):
            for part in minibatches(batch, config.minibatches, config.recurrent > 0, self.generator):
                results.append(self.gradient_step(part, learning_rate, stopped))
        means = [torch.stack(values).mean() for values in zip(*results, strict=True)]
        self.last_round = dict(zip((*UpdateResult._fields, EXPLAINED), (*means, explained), strict=True))
        self.rounds += 1
        if config.final_log_std is not None:
            self.network.distribution.set_log_std(config.log_std(self.steps))
        rollout.length = 0
        rollout.memories = torch.stack([self.memory, critic_memory])

    @property
    def learning_rate(self) -> float:
        """That of the next updates: as annealing has it at the first step of the round."""
        config, num_envs = self.config, len(self.starts)
        if config.anneal_steps is None:
            return config.learning_rate
        before = self.steps - self.rollout.length * num_envs
        return config.learning_rate * max(0.0, 1 - before / config.anneal_steps)

    @torch.no_grad()
    def _batch(self) -> tuple[Batch, Tensor, Tensor]:
        """The round with its advantages; the memory of the value network after it; the share of variance explained."""
        config, critic, rollout = self.config, self.network.critic, self.rollout
        steps = Steps(*(value[: rollout.length] for value in rollout.steps))
        seen = torch.cat([steps.observations, steps.inputs], dim=-1)
        next_seen = torch.cat([steps.next_observations, steps.next_inputs], dim=-1)
        values, memories = critic.sequence(seen, rollout.memories[1], steps.starts)
        next_values, _ = critic.step(next_seen.flatten(0, 1), memories.flatten(0, 1))
        values, next_values = values[..., 0], next_values.view_as(values[..., 0])  # (T, N)
        advantages = advantages_of(steps, values, next_values, config.gamma, config.gae_lambda)
        returns = advantages + values
        weights = _weights(steps.valid)
        unexplained, total = _variance(advantages, weights), _variance(returns, weights)
        if config.group > 1:
            advantages = relative(advantages, steps.valid, config.group)
        batch = Batch(
            *(steps.observations, steps.inputs, steps.starts, steps.actions, steps.log_probs),
            *(advantages, returns, steps.valid, rollout.memories),
        )
        return batch, memories[-1], 1 - unexplained / total.clamp(min=1e-12)

    def gradient_step(self, batch: Batch, learning_rate: float, stopped: Tensor) -> UpdateResult:
        """One step of the optimizer.

        Args:
            batch: to learn from.
            learning_rate: of Adam.
            stopped: () 0 or 1; where 1, the weights stay; becomes 1 where the policy has moved too far.
        """
        config = self.config
        self.gradient.zero_()
        with torch.enable_grad():
            loss, result = self.loss(batch)
            loss.backward()
        if config.target_kl is not None:
            torch.maximum(stopped, (result.kl > config.target_kl).float(), out=stopped)
        if config.max_grad_norm is not None:
            self.gradient.mul_(config.max_grad_norm / self.gradient.norm().clamp_(min=config.max_grad_norm))
        # Torch's function: its class takes longer than the step itself. Where `found_inf` is 1 it changes nothing.
        first, second = self.moments
        adam(
            [self.weights],
            [self.gradient],
            [first],
            [second],
            [],
            [self.optimizer_steps],
            found_inf=stopped,
            lr=learning_rate,
            beta1=0.9,
            beta2=0.999,
            eps=config.optimizer_epsilon,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
            fused=True,
        )
        return result

    def loss(self, batch: Batch) -> tuple[Tensor, UpdateResult]:
        """The loss () of a mini-batch, with its gradient, and what it is made of, without.

        Equation 9 of arXiv:1707.06347, with the mean squared error of the value.
        """
        config, network = self.config, self.network
        outputs, _ = network.policy.sequence(batch.observations, batch.memories[0], batch.starts)
        seen = torch.cat([batch.observations, batch.inputs], dim=-1)
        values, _ = network.critic.sequence(seen, batch.memories[1], batch.starts)
        weights = _weights(batch.valid)
        advantages = batch.advantages
        if config.normalise_advantages:
            mean = (advantages * weights).sum()
            advantages = (advantages - mean) / (_variance(advantages, weights).sqrt() + 1e-8)
        if config.advantage_clip is not None:
            advantages = advantages.clamp(-config.advantage_clip, config.advantage_clip)
        log_ratio = network.distribution.log_prob(outputs, batch.actions) - batch.log_probs
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        policy_loss = -(torch.minimum(ratio * advantages, clipped * advantages) * weights).sum()
        value_loss = ((values[..., 0] - batch.returns).square() * weights).sum()
        entropy = (network.distribution.entropy(outputs) * weights).sum()
        loss = policy_loss + config.value_coefficient * value_loss - config.entropy_coefficient * entropy
        kl = ((ratio - 1 - log_ratio) * weights).sum()
        clip_fraction = (((ratio - 1).abs() > config.clip) * weights).sum()
        result = (policy_loss, value_loss, entropy, kl, clip_fraction)
        return loss, UpdateResult(*(value.detach() for value in result))

    def metrics(self) -> dict[str, float]:
        """Numbers of the last round, 0 before the first; the host waits for them.

        Returns:
            Those of `UpdateResult`, means over the updates; and explained_variance, the share of the returns' variance
            that the value network explained before them.
        """
        names = list(self.last_round)
        return dict(zip(names, torch.stack(list(self.last_round.values())).tolist(), strict=True))

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], **facts: Any) -> None:
        """Write everything, with the steps of the round so far, to one safetensors file, atomically; no pickle.

        What goes on from it begins with new episodes, as after another `begin`.

        Args:
            path: of the file.
            facts: JSON-able values that `load` gives back in `facts`.
        """
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in zip(MOMENTS, self.moments, strict=True)}
        tensors |= {f"last_round/{name}": value for name, value in self.last_round.items()}
        tensors |= {"optimizer_steps": self.optimizer_steps, "generator": self.generator.get_state()}
        unfinished = self._rollout if self._rollout is not None and self._rollout.length > 0 else None
        if unfinished is not None:
            steps = unfinished.steps._asdict().items()
            tensors |= {f"rollout/{name}": value[: unfinished.length] for name, value in steps}
            tensors["memories"] = unfinished.memories
        about = {
            "format": FORMAT,
            "config": asdict(self.config),
            "interface": asdict(self.interface),
            "steps": self.steps,
            "rounds": self.rounds,
            "num_envs": None if unfinished is None else unfinished.memories.shape[1],
            "length": 0 if unfinished is None else unfinished.length,
            "facts": facts,
        }
        save_arrays(path, {name: value.detach().cpu().numpy() for name, value in tensors.items()}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> "PPO":
        """An agent as `save` left it; `facts` has what was saved beside it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or of something else.
        """
        arrays, about = load_arrays(path)
        if about.get("format") != FORMAT:
            raise ValueError(f"{path}: not an agent saved by this version of qan_agents.ppo")
        try:
            agent = cls(PPOConfig(**about["config"]), PPOInterface(**about["interface"]), device)
            agent.steps, agent.rounds, agent.facts = int(about["steps"]), int(about["rounds"]), about["facts"]
            agent._restore(arrays, about["num_envs"], about["length"])
        except (AttributeError, KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: damaged, or of another version of qan_agents.ppo ({error})") from error
        return agent

    @in_own_settings
    @torch.no_grad()
    def begin_with(self, other: "PPO") -> None:
        """Take over the networks of another agent; the deviation of the actions begins as the hyperparameters say.

        Args:
            other: of the same interface, its networks of the same sizes.

        Raises:
            ValueError: it sees or does something else, or its networks are of other sizes.
        """
        own, theirs = (
            [(name, value.shape) for name, value in agent.network.state_dict().items()] for agent in (self, other)
        )
        if self.interface != other.interface or own != theirs:
            raise ValueError("the other agent sees or does something else, or its networks are of other sizes")
        self.network.load_state_dict(other.network.state_dict())
        if self.config.final_log_std is not None:
            self.network.distribution.set_log_std(self.config.log_std(self.steps))

    @in_own_settings
    @torch.no_grad()
    def _restore(self, arrays: dict[str, NDArray[Any]], num_envs: int | None, length: int) -> None:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        start = "network/"
        network = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        self.network.load_state_dict(network)
        for name, moment in zip(MOMENTS, self.moments, strict=True):
            moment.copy_(tensors[f"optimizer/{name}"])
        for name, value in self.last_round.items():
            value.copy_(tensors[f"last_round/{name}"])
        self.optimizer_steps.copy_(tensors["optimizer_steps"])
        self.generator.set_state(tensors["generator"])
        if num_envs is not None:
            self._reserve(num_envs)
            for name, kept in self.rollout.steps._asdict().items():
                kept[:length].copy_(tensors[f"rollout/{name}"])
            self.rollout.memories.copy_(tensors["memories"])
            self.rollout.length = length


def _weights(valid: Tensor) -> Tensor:
    """Weights that sum to 1 over the valid steps, and are 0 elsewhere."""
    return valid / valid.sum().clamp(min=1)


def _variance(values: Tensor, weights: Tensor) -> Tensor:
    mean = (values * weights).sum()
    return ((values - mean).square() * weights).sum()
