"""What an evaluation says: a table for people, and one sentence about the agent and its rivals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qan_agents.experiments.evaluation import PolicyScores, scores_by_policy
from qan_agents.experiments.played_task import PlayedTask, base_schedule, baseline_of
from qan_agents.experiments.run_folder import EVALUATION_EPISODES, Run
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.counts import counted

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Lead:
    """By how much the agent's test loss is lower than a rival's, on the same seeds.

    Attributes:
        mean: over the seeds, nats.
        low, high: the ends of its interval by Student's t; both NaN where a training has diverged or there is one seed.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, agent: PolicyScores, rival: PolicyScores) -> "Lead":
        """The lead of an agent over a rival."""
        from scipy.special import stdtrit  # scipy.stats takes a second to import

        leads = np.array(rival.test_loss) - np.array(agent.test_loss)
        mean, count = float(leads.mean()), len(leads)
        if count < 2 or not np.isfinite(leads).all():
            return cls(mean, np.nan, np.nan)
        half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2) * leads.std(ddof=1) / np.sqrt(count))
        return cls(mean, mean - half, mean + half)

    @property
    def sign(self) -> int:
        """1: ahead; -1: behind; 0: the interval has 0 in it."""
        return int(self.low > 0) - int(self.high < 0)

    def against(self, rival: str) -> str:
        """How the agent stands to a rival, in words."""
        if self.sign == 0:
            return f"level with {rival}, as far as these seeds tell (lead {self})"
        return f"{'ahead of' if self.sign > 0 else 'behind'} {rival} by {self}"

    def __str__(self) -> str:
        """The lead, or how far it is behind, with its interval."""
        side = -1 if self.sign < 0 else 1
        ends = sorted((side * self.low, side * self.high))
        return f"{side * self.mean:z.4f} ({ends[0]:z.4f} to {ends[1]:z.4f})"


@dataclass(frozen=True)
class Verdict:
    """An evaluation of an agent.

    Attributes:
        scores: the agent's, then those of its rivals.
        baseline: the rival that everybody is counted against.
        base: the rival that nobody acting is, the schedule under the agent's actions or another; None: there is none.
    """

    scores: Sequence[PolicyScores]
    baseline: str
    base: str | None

    @property
    def _by_name(self) -> dict[str, PolicyScores]:
        return {one.policy: one for one in self.scores}

    @property
    def title(self) -> str:
        """Of the table."""
        return f"unseen seeds: {len(self.scores[0].test_loss)}; mean (lowest-highest)"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The head, and a row for each policy."""
        baseline = self._by_name[self.baseline].test_loss
        rows: list[tuple[str, ...]] = []
        for one in self.scores:
            better = sum(mine < its for mine, its in zip(one.test_loss, baseline, strict=True))
            ahead = "" if one.policy == self.baseline else f"{better} of {counted(len(baseline), 'seed')}"
            accuracy = mean_and_range([100 * value for value in one.test_accuracy], digits=1)
            name = f"{one.policy}, nobody acting" if one.policy == self.base else one.policy
            rows.append((name, mean_and_range(one.test_loss, digits=4), accuracy, ahead))
        return ("", "test loss", "test accuracy (%)", f"better than {self.baseline} on"), rows

    def sentence(self) -> str:
        """Ahead of, level with or behind the baseline and the best other rival, and what its schedule alone does."""
        agent, by_name = self.scores[0], self._by_name
        count = len(agent.test_loss)
        if count < 2:
            return f"{agent.policy} was compared on one seed, which cannot tell it from its rivals."
        if any(not np.isfinite(one.test_loss).all() for one in self.scores):
            lost = [one.policy for one in self.scores if not np.isfinite(one.test_loss).all()]
            return (
                f"On {count} unseen seeds trainings of {' and '.join(lost)} diverged, so nobody's lead has an interval."
            )
        compared = [self.baseline]
        others = [one for one in self.scores[1:] if one.policy not in (self.base, self.baseline)]
        if others:
            compared.append(min(others, key=lambda one: float(np.mean(one.test_loss))).policy)
        leads = [Lead.of(agent, by_name[name]).against(name) for name in compared if name != self.base]
        parts = [f"{agent.policy} is {' and '.join(leads)}"] if leads else []
        if self.base is not None:
            parts.append(self._about_base(agent, by_name[self.base]))
        return f"On {count} unseen seeds {'; '.join(parts)} (test loss, with 95 % intervals over the seeds)."

    def _about_base(self, agent: PolicyScores, base: PolicyScores) -> str:
        """What the schedule under the agent's actions, or the mixture that they begin with, does alone."""
        kind = "schedule" if base.policy in SCHEDULES else "mixture"
        alone = f"its {kind} alone, {base.policy} with nobody acting,"
        if agent.test_loss == base.test_loss:
            return f"it left its {kind} as it is: {base.policy} with nobody acting does exactly as well"
        lead = Lead.of(agent, base)
        if lead.sign == 0:
            return f"{alone} does as well, as far as these seeds tell (the agent's lead is {lead})"
        if lead.sign > 0:
            return f"{alone} does worse by {lead}: the agent adds to it"
        return f"{alone} does better by {lead}: the agent takes away from it"


def verdict_of(run: Run) -> Verdict:
    """The verdict of the last evaluation of a run.

    Raises:
        ValueError: it was not evaluated, or with other policies; its game is not registered; or a file is damaged.
    """
    scores, task, baselines = scores_by_policy(run), PlayedTask.of(run).config, run.config().baselines
    names = [one.policy for one in scores]
    baseline, base = baseline_of(task, baselines), base_schedule(task)
    if baseline not in names[1:]:
        raise ValueError(
            f"{run.folder / EVALUATION_EPISODES} has no policy {baseline!r}: qan evaluate {run.folder} writes it anew"
        )
    return Verdict(scores, baseline, base if base in names[1:] else None)


def mean_and_range(values: Sequence[float], digits: int) -> str:
    """`mean (lowest-highest)`."""
    mean, low, high = (f"{value:.{digits}f}" for value in (np.mean(values), min(values), max(values)))
    return f"{mean} ({low}-{high})"
