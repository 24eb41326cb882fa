"""The update of the bundled DQN as its equations: one transition at a time, in float64."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qan_agents.dqn import DQNConfig

Params = dict[str, Tensor]


@dataclass
class OracleEpisode:
    """Frames (T + 1, D), actions, rewards, and whether it terminated (else it was truncated)."""

    frames: Tensor
    actions: list[int]
    rewards: list[float]
    terminated: bool
    length: int | None = None  # transitions so far, where it is still going on


@dataclass
class OracleDQN:
    """Weights by name, and the moments of the optimizer."""

    config: DQNConfig
    screen: tuple[int, int]
    score_line: int
    network: Params
    target: Params
    first: Params = field(default_factory=dict)
    second: Params = field(default_factory=dict)
    steps: int = 0

    def values(self, params: Params, observation: Tensor) -> Tensor:
        """(history, D) -> (actions, quantiles)."""
        hidden = self.features(params, observation)
        hidden = self.layers(params, "trunk", hidden, ends_open=False)
        values = self.layers(params, "advantage", hidden, ends_open=True).reshape(-1, self.config.quantiles)
        if not self.config.dueling:
            return values
        state = self.layers(params, "value", hidden, ends_open=True)
        return torch.stack([state + row - sum(values) / len(values) for row in values])

    def features(self, params: Params, observation: Tensor) -> Tensor:
        rows, columns = self.screen
        screens = observation.reshape(-1, rows, columns)
        if self.config.features == "flat":
            return observation.reshape(-1)
        if self.config.features == "score-line":
            return torch.cat([torch.cat([s[-1, :5], (s[:-1] ** 2).mean().sqrt()[None]]) for s in screens])
        if self.config.features == "scores":
            return torch.cat([s[-1, : self.score_line] for s in screens])
        weight, bias = params["features.layers.1.weight"], params["features.layers.1.bias"]
        padded = torch.zeros(len(screens), rows + 2, columns + 2, dtype=torch.float64)
        padded[:, 1:-1, 1:-1] = screens
        height, width = (rows + 2 - 8) // 4 + 1, (columns + 2 - 8) // 4 + 1
        out = [
            (weight[f] * padded[:, 4 * y : 4 * y + 8, 4 * x : 4 * x + 8]).sum() + bias[f]
            for f in range(32)
            for y in range(height)
            for x in range(width)
        ]
        return torch.stack(out).clamp(min=0)

    def layers(self, params: Params, part: str, hidden: Tensor, ends_open: bool) -> Tensor:
        numbers = sorted({int(name.split(".")[1]) for name in params if name.startswith(part + ".")})
        for number in numbers:
            weight, bias = params[f"{part}.{number}.weight"], params[f"{part}.{number}.bias"]
            if weight.dim() == 2:
                hidden = weight @ hidden + bias
                rectified = not self.config.layer_norm
            else:
                mean = hidden.mean()
                hidden = (hidden - mean) / ((hidden - mean) ** 2).mean().add(1e-5).sqrt() * weight + bias
                rectified = True
            if rectified and not (ends_open and number == numbers[-1]):
                hidden = hidden.clamp(min=0)
        return hidden

    def observation(self, episode: OracleEpisode, t: int) -> Tensor:
        return torch.stack([episode.frames[max(t - back, 0)] for back in range(self.config.history - 1, -1, -1)])

    def targets(self, episode: OracleEpisode, t: int) -> Tensor:
        """(quantiles,) of one transition."""
        config, total, steps = self.config, 0.0, 0
        last = len(episode.actions) if episode.length is None else episode.length
        while steps < config.n_step and t + steps < last:
            total += config.gamma**steps * episode.rewards[t + steps]
            steps += 1
        if episode.terminated and episode.length is None and t + steps == last:
            return torch.full((config.quantiles,), total, dtype=torch.float64)
        next_observation = self.observation(episode, t + steps)
        next_values = self.values(self.target, next_observation)
        choice = self.values(self.network, next_observation) if config.double else next_values
        best = max(range(len(choice)), key=lambda action: float(choice[action].mean()))
        return (total + config.gamma**steps * next_values[best]).detach()

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Of one transition; both (quantiles,)."""
        limit, count = self.config.clip_td_error, self.config.quantiles
        if count == 1:
            return self.huber(targets[0] - values[0])
        total = torch.zeros((), dtype=torch.float64)
        for i in range(count):
            for j in range(count):
                error = targets[j] - values[i]
                total = total + abs((i + 0.5) / count - float(error.detach() < 0)) * self.huber(error) / limit / count
        return total

    def huber(self, error: Tensor) -> Tensor:
        limit = self.config.clip_td_error
        if limit is None or abs(float(error.detach())) <= limit:
            return 0.5 * error**2
        return limit * (abs(error) - 0.5 * limit)

    def update(self, transitions: list[tuple[OracleEpisode, int]], weights: list[float]) -> tuple[float, list[float]]:
        """One step of the optimizer; the loss and the TD errors before it."""
        params = {name: value.clone().requires_grad_() for name, value in self.network.items()}
        total, errors = torch.zeros((), dtype=torch.float64), []
        for (episode, t), weight in zip(transitions, weights, strict=True):
            values = self.values(params, self.observation(episode, t))[episode.actions[t]]
            targets = self.targets(episode, t)
            total = total + weight * self.loss(values, targets) / len(transitions)
            errors.append(float((targets - values.detach()).mean()))
        gradients = dict(zip(params, torch.autograd.grad(total, list(params.values())), strict=True))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        limit = self.config.max_grad_norm
        scale = limit / norm if limit is not None and norm > limit else 1.0
        self.steps += 1
        for name, gradient in gradients.items():
            self.change(name, gradient * scale)
        return float(total.detach()), errors

    def change(self, name: str, gradient: Tensor) -> None:
        lr, eps = self.config.learning_rate, self.config.optimizer_epsilon
        first, second = self.first.get(name, 0.0), self.second.get(name, 0.0)
        if self.config.optimizer == "rmsprop":
            first, second = 0.95 * first + 0.05 * gradient, 0.95 * second + 0.05 * gradient**2
            step = gradient / (second - first**2 + eps).sqrt()
        else:
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            step = first / (1 - 0.9**self.steps) / ((second / (1 - 0.999**self.steps)).sqrt() + eps)
        self.first[name], self.second[name] = first, second
        self.network[name] = self.network[name] - lr * step
