"""Which samples a probe is trained on, chosen by, and measured on."""

import dataclasses
import math

import numpy as np

TEST, VALIDATION = 0.3, 0.2  # of a class's groups, and of those that are left
LEAST = 5  # groups of a class that is probed: one of them validates, one or two test


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Numbers of samples, rising: no two parts share one, nor a group.

    ``groups`` is how many groups the test has, which bound what it can tell.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    groups: int

    @property
    def all(self) -> np.ndarray:
        return np.concatenate([self.train, self.validation, self.test])


def split(class_N: np.ndarray, group_N: np.ndarray, seed: int) -> Split | None:
    """Parts of N samples, each with its share of every class; None where fewer than two classes are left.

    ``class_N`` is the class of each, -1 where it has none; ``group_N`` what it must stay with. A group counts
    for the class of its first sample. Classes with fewer than LEAST groups are left out, with their samples.
    """
    has = np.flatnonzero(class_N >= 0)
    groups, first, of_sample = np.unique(group_N[has], return_index=True, return_inverse=True)
    class_of_group = class_N[has][first]
    random = np.random.default_rng(seed)
    part_of_group = np.full(len(groups), -1)
    probed = [c for c in np.unique(class_of_group) if (class_of_group == c).sum() >= LEAST]
    for one in probed:
        members = random.permutation(np.flatnonzero(class_of_group == one))
        test = math.ceil(TEST * len(members))
        validation = math.ceil(VALIDATION * (len(members) - test))
        part_of_group[members] = 0
        part_of_group[members[: test + validation]] = 1
        part_of_group[members[:test]] = 2
    if len(probed) < 2:
        return None
    part = np.where(np.isin(class_N[has], probed), part_of_group[of_sample], -1)
    train, validation, test = (has[part == number] for number in range(3))
    return Split(train, validation, test, int((part_of_group == 2).sum()))
