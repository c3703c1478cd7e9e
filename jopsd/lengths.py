"""Guesses how long completions become, so that the longest are begun first and the end of a batch is not one of them.

A guess decides only in which order requests are made, never what is drawn: a resumed run starts without any.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from jopsd.data.problem import Problem

MEMORY = 10  # batches that the mean over all problems reaches back to


class Lengths:
    """What earlier completions say of the length of later ones: of the same problem, else of all.

    Where processes draw as one, each must be told of the same completions, for all to make the same order.
    """

    def __init__(self):
        self._known: dict[tuple[str, str], float] = {}
        self._mean, self._batches = 0.0, 0

    def expected(self, problem: Problem) -> float:
        """Tokens of the next completion: the mean of the problem's last batch, else of all in the last batches."""
        return self._known.get(_key(problem), self._mean)

    def learn(self, drawn: Iterable[tuple[Problem, int]]) -> None:
        """Takes in a batch of completions: of which problem, and how many tokens each."""
        lengths: dict[tuple[str, str], list[int]] = defaultdict(list)
        for problem, tokens in drawn:
            lengths[_key(problem)].append(tokens)
        if not lengths:
            return
        self._known |= {key: sum(own) / len(own) for key, own in lengths.items()}
        everything = [tokens for own in lengths.values() for tokens in own]
        self._batches += 1
        self._mean += (sum(everything) / len(everything) - self._mean) / min(self._batches, MEMORY)

    def order(self, problems: Sequence[Problem]) -> list[int]:
        """Places of the problems, longest expected completions first; those that are alike in the order given."""
        guesses = [self.expected(problem) for problem in problems]
        return sorted(range(len(problems)), key=lambda place: -guesses[place])


def _key(problem: Problem) -> tuple[str, str]:
    return problem.source, problem.id
