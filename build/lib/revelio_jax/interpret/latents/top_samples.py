"""The strongest distinct samples of many lists at once: bounded, exact, whatever comes together. numpy.

A list has ``most`` places and some more. What beats the weakest of the ``most`` is appended; where the places
run out, all but the ``most`` strongest go. So a list is sorted once for several that enter it.

Equal values, such as those of a token that every prompt begins with, are ranked by a hash of the sample: a
random order, always the same. By number the strongest of a sorted store would be neighbours, alike in their
labels for no other reason.
"""

import typing

import numpy as np

MORE = 4  # a list has 1 / MORE more places than it has to keep, and at least MORE
EMPTY = np.uint64(2**64 - 1)


class Ranked(typing.NamedTuple):
    """The samples of every list, strongest first: arrays [lists, most]; sample -1 where there is none."""

    value: np.ndarray
    sample: np.ndarray
    position: np.ndarray
    timestep: np.ndarray


class Strongest:
    """``lists`` lists of the ``most`` strongest samples; with ``cells``, of each a profile, uint8 [cells]."""

    def __init__(self, lists: int, most: int, cells: int = 0):
        places = most + max(most // MORE, MORE)
        self.most = most
        # Value and hash of the sample in one number, the strongest first: floats > 0 are ordered as bits.
        self._keys = np.full((lists, places), EMPTY)
        self._positions = np.empty((lists, places), np.int32)
        self._timesteps = np.empty((lists, places), np.int32)
        self._taken = np.zeros(lists, np.int32)
        # What a sample has to beat, and its value.
        self._weakest = np.full(lists, EMPTY)
        self._least = np.zeros(lists, np.float32)
        # Profiles stay where they were written; the places only say where that is.
        self._where = np.tile(np.arange(places, dtype=np.uint16), (lists, 1) if cells else (0, 1))
        self._profiles = np.zeros((lists if cells else 0, places, cells), np.uint8)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    def wanted(self, list_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
        """Which of N samples may enter, by their values alone: numbers, rising."""
        return np.flatnonzero(value_N >= np.take(self._least, list_N))

    def add(
        self,
        list_N: np.ndarray,
        value_N: np.ndarray,
        sample_N: np.ndarray,
        position_N: np.ndarray,
        timestep_N: np.ndarray,
        profile_NC: np.ndarray | None = None,
    ) -> None:
        """Add samples; those of one list stand one after another. A sample may come once to a list."""
        room = self._keys.shape[1] - self.most
        key_N = _key(value_N, sample_N)
        left = np.flatnonzero(key_N < self._weakest[list_N])
        while len(left):
            of = list_N[left]
            first = np.flatnonzero(np.diff(of, prepend=-1))
            count = np.diff(first, append=len(of))
            rank = np.arange(len(of)) - np.repeat(first, count)
            fits = rank < room
            lists, count = of[first], np.minimum(count, room)
            now, of, rank = left[fits], of[fits], rank[fits]
            self._weed(lists[self._taken[lists] + count > self._keys.shape[1]])
            place = self._taken[of] + rank
            self._keys[of, place] = key_N[now]
            self._positions[of, place] = position_N[now]
            self._timesteps[of, place] = timestep_N[now]
            if profile_NC is not None:
                self._profiles[of, self._where[of, place]] = profile_NC[now]
            self._taken[lists] += count.astype(np.int32)
            left = left[~fits]
            left = left[key_N[left] < self._weakest[list_N[left]]]

    def ranked(self) -> Ranked:
        """All lists; nothing may be added after it."""
        self._weed(np.arange(len(self._keys)))
        keys = self._keys[:, : self.most]
        none = keys == EMPTY
        return Ranked(
            np.where(none, 0, _value(keys)),
            np.where(none, -1, unmixed(keys.astype(np.uint32)).astype(np.int32)),
            np.where(none, -1, self._positions[:, : self.most]),
            np.where(none, -1, self._timesteps[:, : self.most]),
        )

    def profiles(self) -> np.ndarray:
        """Profiles [lists, most, cells] in the order of :meth:`ranked`, after it, in the memory they have."""
        lists, places, cells = self._profiles.shape
        flat = self._profiles.reshape(-1, cells)
        for start in range(0, lists, 256):  # what is written lies before what is still to be read
            stop = min(start + 256, lists)
            of = np.arange(start, stop)[:, None] * places + self._where[start:stop, : self.most]
            flat[start * self.most : stop * self.most] = flat[of].reshape(-1, cells)
        return flat[: lists * self.most].reshape(lists, self.most, cells)

    def _weed(self, lists: np.ndarray) -> None:
        """Sort lists and let go of all but ``most``."""
        columns = [self._keys, self._positions, self._timesteps] + [self._where] * (len(self._where) > 0)
        for of in np.split(lists, range(4096, len(lists), 4096)):
            order = np.argsort(self._keys[of], axis=1)
            for column in columns:
                column[of] = np.take_along_axis(column[of], order, 1)
            self._keys[of, self.most :] = EMPTY
            self._taken[of] = np.minimum(self._taken[of], self.most)
            self._weakest[of] = weakest = self._keys[of, self.most - 1]
            self._least[of] = np.where(weakest == EMPTY, 0, _value(weakest))


def _key(value_N: np.ndarray, sample_N: np.ndarray) -> np.ndarray:
    bits = np.uint64(0x7FFFFFFF) - np.ascontiguousarray(value_N, np.float32).view(np.uint32)
    return bits << np.uint64(32) | mixed(sample_N.astype(np.uint32)).astype(np.uint64)


def _value(keys: np.ndarray) -> np.ndarray:
    bits = np.uint64(0x7FFFFFFF) - (keys >> np.uint64(32))
    return bits.astype(np.uint32).view(np.float32)


def mixed(numbers: np.ndarray) -> np.ndarray:
    """uint32 in a random order that is always the same, one to one (Wellons 2018, "Prospecting for hash
    functions", lowbias32)."""
    x = numbers
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def unmixed(hashes: np.ndarray) -> np.ndarray:
    """The numbers whose hashes :func:`mixed` gives."""
    x = hashes
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x43021123)
    x = (x ^ (x >> np.uint32(15)) ^ (x >> np.uint32(30))) * np.uint32(0x1D69E2A5)
    return x ^ (x >> np.uint32(16))
