"""Plays what is missing of the contenders' trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qan_agents.judging.contenders import Contender
from qan_agents.judging.problems import Problem, judged_seed, trainings_of
from qan_agents.judging.results import Results, key_of, rows_of
from qan_gym.families.record import MLPS

TOGETHER = 32  # problems of multilayer perceptrons that are played, and then kept, at once; others one by one


def pieces(problems: Sequence[Problem]) -> Iterator[list[Problem]]:
    """The problems in pieces, which do not depend on what has been played."""
    small = [problem for problem in problems if problem.kind in MLPS and problem.dataset == problems[0].dataset]
    for start in range(0, len(small), TOGETHER):
        yield small[start : start + TOGETHER]
    yield from ([problem] for problem in problems if problem not in small)


def missing(results: Results, contender: Contender, problems: Sequence[Problem], seeds: int) -> list[list[Problem]]:
    """The pieces of which a training is missing."""
    there = results.rows(contender)

    def done(problem: Problem) -> bool:
        key = key_of(problem, contender.optimizer)
        return all((key, judged_seed(problem, number)) in there for number in range(seeds))

    return [piece for piece in pieces(problems) if not all(map(done, piece))]


def play_missing(
    results: Results,
    contenders: Sequence[Contender],
    problems: Sequence[Problem],
    seeds: int,
    begin: Callable[[int], None] = lambda total: None,
    advance: Callable[[Contender, int], None] = lambda contender, count: None,
) -> None:
    """Play what is not in the results, a piece of problems at a time; after a kill at most one piece is played again.

    Args:
        results: to which everything is added.
        contenders: all that are compared.
        problems: all that they are compared on.
        seeds: trainings of each problem.
        begin: called once with the number of trainings that will be played.
        advance: called after each piece with the contender and the number of trainings in it.
    """
    todo = [(one, piece) for one in contenders for piece in missing(results, one, problems, seeds)]
    begin(sum(len(piece) for _, piece in todo) * seeds)
    for contender, piece in todo:
        outcomes = contender.play(trainings_of(piece, contender.optimizer, seeds))
        results.add(contender, rows_of(contender, piece, seeds, outcomes))
        advance(contender, len(piece) * seeds)
