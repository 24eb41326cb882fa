"""The updates of the bundled PPO as their equations: one step and one number at a time, in float64."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qan_agents.ppo import PPOConfig
from qan_agents.ppo.actions import ActionSpace

Params = dict[str, Tensor]
ACTIVATIONS = {
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "relu": lambda x: x * (x > 0),
    "silu": lambda x: x / (1 + (-x).exp()),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
}


@dataclass
class OracleStep:
    """One step of one row; vectors are float64."""

    observation: Tensor
    inputs: Tensor
    start: bool
    action: list[float]
    log_prob: float
    reward: float
    next_observation: Tensor
    next_inputs: Tensor
    terminated: bool
    ended: bool
    valid: bool


@dataclass
class OraclePPO:
    """Weights by name, the moments of Adam, and a round: a list of steps for each row."""

    config: PPOConfig
    space: ActionSpace
    params: Params
    rows: list[list[OracleStep]]
    memories: list[tuple[Tensor, Tensor]]  # of policy and critic, before the first step of each row
    first: Params = field(default_factory=dict)
    second: Params = field(default_factory=dict)
    updates: int = 0
    stopped: bool = False

    # --- networks -------------------------------------------------------------------------------------------------

    def network(self, params: Params, part: str, numbers: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The output of a network for one observation, and its memory."""
        for number in range(len(self.config.hidden)):
            weight, bias = params[f"{part}.layers.{2 * number}.weight"], params[f"{part}.layers.{2 * number}.bias"]
            numbers = ACTIVATIONS[self.config.activation](weight @ numbers + bias)
        if self.config.recurrent:
            reset, update, new = (params[f"{part}.gru.weight_ih"] @ numbers + params[f"{part}.gru.bias_ih"]).chunk(3)
            old = (params[f"{part}.gru.weight_hh"] @ memory + params[f"{part}.gru.bias_hh"]).chunk(3)
            reset, update = 1 / (1 + (-reset - old[0]).exp()), 1 / (1 + (-update - old[1]).exp())
            numbers = memory = (1 - update) * torch.tanh(new + reset * old[2]) + update * memory
        return params[f"{part}.head.weight"] @ numbers + params[f"{part}.head.bias"], memory

    def unrolled(self, params: Params, row: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of each step of a row: the policy's output, the value, and the value of the next observation."""
        policy, critic = self.memories[row]
        outputs, values, next_values = [], [], []
        for step in self.rows[row]:
            if step.start:
                policy, critic = torch.zeros_like(policy), torch.zeros_like(critic)
            output, policy = self.network(params, "policy", step.observation, policy)
            value, critic = self.network(params, "critic", torch.cat([step.observation, step.inputs]), critic)
            following = torch.cat([step.next_observation, step.next_inputs])
            outputs.append(output)
            values.append(value[0])
            next_values.append(self.network(params, "critic", following, critic)[0][0])
        return outputs, values, next_values

    # --- the distribution -----------------------------------------------------------------------------------------

    def log_prob(self, params: Params, output: Tensor, action: list[float]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        if not self.space.choices:
            for mean, log_std, number in zip(output, params["distribution.log_std"], action, strict=True):
                density = ((-((number - mean) ** 2)) / (2 * log_std.exp() ** 2)).exp() / log_std.exp()
                total = total + (density / math.sqrt(2 * math.pi)).log()
            return total
        offset = 0
        for count, choice in zip(self.space.choices, action, strict=True):
            part = output[offset : offset + count].exp()
            total, offset = total + (part[int(choice)] / part.sum()).log(), offset + count
        return total

    def entropy(self, params: Params, output: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        if not self.space.choices:
            for log_std in params["distribution.log_std"]:
                total = total + 0.5 * (2 * math.pi * math.e * log_std.exp() ** 2).log()
            return total
        offset = 0
        for count in self.space.choices:
            share = output[offset : offset + count].exp() / output[offset : offset + count].exp().sum()
            total, offset = total - sum(p * p.log() for p in share), offset + count
        return total

    # --- advantages -----------------------------------------------------------------------------------------------

    def advantages(self) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
        """Advantages and returns by (t, row): the sum of the TD errors that follow in the episode, as it is defined."""
        advantages, returns = {}, {}
        for number, row in enumerate(self.rows):
            _, values, next_values = self.unrolled(self.params, number)
            errors = [
                step.reward + (0 if step.terminated else self.config.gamma * float(next_value)) - float(value)
                for step, value, next_value in zip(row, values, next_values, strict=True)
            ]
            for t in range(len(row)):
                total = 0.0
                for later in range(t, len(row)):
                    if not row[later].valid:
                        break
                    total += (self.config.gamma * self.config.gae_lambda) ** (later - t) * errors[later]
                    if row[later].ended:
                        break
                advantages[t, number] = total
                returns[t, number] = total + float(values[t])
        return advantages, returns

    def relative(self, advantages: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
        """Minus the mean of the group's valid steps at the same time."""
        size, minus = self.config.group, {}
        for (t, number), advantage in advantages.items():
            first = number // size * size
            peers = [advantages[t, peer] for peer in range(first, first + size) if self.rows[peer][t].valid]
            compared = size > 1 and self.rows[number][t].valid
            minus[t, number] = advantage - sum(peers) / len(peers) if compared else advantage
        return minus

    # --- updates --------------------------------------------------------------------------------------------------

    def update(
        self, places: list[tuple[int, int]], advantages: dict, returns: dict, lr: float
    ) -> tuple[list[float], Params]:
        """One mini-batch: the numbers of `UpdateResult`, and the gradients as they were applied."""
        config = self.config
        params = {name: value.clone().requires_grad_() for name, value in self.params.items()}
        unrolled = {row: self.unrolled(params, row) for row in {row for _, row in places}}
        places = [place for place in places if self.rows[place[1]][place[0]].valid]
        count = len(places)
        mean = sum(advantages[place] for place in places) / count
        spread = math.sqrt(sum((advantages[place] - mean) ** 2 for place in places) / count)
        sums = [torch.zeros((), dtype=torch.float64) for _ in range(5)]
        for t, row in places:
            outputs, values, _ = unrolled[row]
            step, advantage = self.rows[row][t], advantages[t, row]
            if config.normalise_advantages:
                advantage = (advantage - mean) / (spread + 1e-8)
            if config.advantage_clip is not None:
                advantage = max(-config.advantage_clip, min(advantage, config.advantage_clip))
            ratio = self.log_prob(params, outputs[t], step.action).exp() / math.exp(step.log_prob)
            if advantage >= 0:
                gain = advantage * (ratio if ratio < 1 + config.clip else torch.full_like(ratio, 1 + config.clip))
            else:
                gain = advantage * (ratio if ratio > 1 - config.clip else torch.full_like(ratio, 1 - config.clip))
            numbers = [
                -gain,
                (values[t] - returns[t, row]) ** 2,
                self.entropy(params, outputs[t]),
                ratio.detach() - 1 - ratio.detach().log(),
                torch.tensor(float(abs(float(ratio.detach()) - 1) > config.clip)),
            ]
            sums = [total + number / count for total, number in zip(sums, numbers, strict=True)]
        loss = sums[0] + config.value_coefficient * sums[1] - config.entropy_coefficient * sums[2]
        learned = {name: value for name, value in params.items() if name != "distribution.log_std" or config.learn_std}
        gradients = torch.autograd.grad(loss, list(learned.values()), allow_unused=True, materialize_grads=True)
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        limit = config.max_grad_norm
        scale = limit / norm if limit is not None and norm > limit else 1.0
        applied = {name: gradient * scale for name, gradient in zip(learned, gradients, strict=True)}
        if config.target_kl is not None and float(sums[3]) > config.target_kl:
            self.stopped = True
        if not self.stopped:
            self.updates += 1
            for name, gradient in applied.items():
                self.adam(name, gradient, lr)
        return [float(total.detach()) for total in sums], applied

    def adam(self, name: str, gradient: Tensor, lr: float) -> None:
        first = 0.9 * self.first.get(name, 0.0) + 0.1 * gradient
        second = 0.999 * self.second.get(name, 0.0) + 0.001 * gradient**2
        corrected = (second / (1 - 0.999**self.updates)).sqrt() + self.config.optimizer_epsilon
        self.params[name] = self.params[name] - lr * first / (1 - 0.9**self.updates) / corrected
        self.first[name], self.second[name] = first, second
