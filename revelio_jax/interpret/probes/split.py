"""Split samples into training, validation and test sets of a probe."""

import dataclasses
import math

import numpy as np

TEST, VALIDATION = 0.3, 0.2  # share of the groups of a class, and share of its remaining groups
LEAST = 5  # smallest number of groups of a class: at least one for validation and one for the test


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The sample numbers of each set, ascending. The sets share no sample and no group.

    ``groups`` is the number of groups in the test set, which limits the precision of the accuracy.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    groups: int

    @property
    def all(self) -> np.ndarray:
        return np.concatenate([self.train, self.validation, self.test])


def split(class_N: np.ndarray, group_N: np.ndarray, seed: int) -> Split | None:
    """Split N samples so that each set has its share of each class; return None with fewer than two usable classes.

    ``class_N`` is the class of each sample, -1 without a class. Samples with the same ``group_N`` are in the same
    set. The class of a group is the class of its first sample. Classes with fewer than LEAST groups are left out.
    """
    labeled = np.flatnonzero(class_N >= 0)
    groups, first, of_sample = np.unique(group_N[labeled], return_index=True, return_inverse=True)
    class_of_group = class_N[labeled][first]
    random = np.random.default_rng(seed)
    part_of_group = np.full(len(groups), -1)
    probed = [c for c in np.unique(class_of_group) if (class_of_group == c).sum() >= LEAST]
    for number in probed:
        members = random.permutation(np.flatnonzero(class_of_group == number))
        test = math.ceil(TEST * len(members))
        validation = math.ceil(VALIDATION * (len(members) - test))
        part_of_group[members] = 0
        part_of_group[members[: test + validation]] = 1
        part_of_group[members[:test]] = 2
    if len(probed) < 2:
        return None
    part = np.where(np.isin(class_N[labeled], probed), part_of_group[of_sample], -1)
    train, validation, test = (labeled[part == number] for number in range(3))
    return Split(train, validation, test, int((part_of_group == 2).sum()))
