"""Find the top samples of many lists at once, in bounded memory, exactly and independently of batch boundaries.

A list has ``most`` places and a few spare places. A sample that is stronger than the weakest of the ``most`` is
appended. When the places are full, all but the ``most`` strongest are dropped, so one sort handles several new samples.

Equal values, for example of a token that begins every prompt, are ranked by a hash of the sample number, a fixed
random order. Ranked by number, the top samples of a sorted store would be adjacent samples with the same labels.
"""

import typing

import numpy as np

SPARE = 4  # a list has most / SPARE spare places, and at least SPARE
EMPTY = np.uint64(2**64 - 1)


class RankedSamples(typing.NamedTuple):
    """Samples of each list, strongest first: arrays [lists, most]; sample is -1 in an unused place."""

    value: np.ndarray
    sample: np.ndarray
    position: np.ndarray
    timestep: np.ndarray


class TopSamples:
    """The ``most`` strongest samples of each of ``lists`` lists.

    With ``cells`` each sample also has a profile, uint8 [cells].
    """

    def __init__(self, lists: int, most: int, cells: int = 0):
        places = most + max(most // SPARE, SPARE)
        self.most = most
        # A key holds value and sample hash; the smallest is the strongest, since floats > 0 sort like their bits.
        self._keys = np.full((lists, places), EMPTY)
        self._positions = np.empty((lists, places), np.int32)
        self._timesteps = np.empty((lists, places), np.int32)
        self._taken = np.zeros(lists, np.int32)
        # The key and the value of the weakest of the ``most`` samples.
        self._weakest = np.full(lists, EMPTY)
        self._least = np.zeros(lists, np.float32)
        # Profiles are not moved when a list is sorted; each place holds the index of its profile.
        self._profile_index = np.tile(np.arange(places, dtype=np.uint16), (lists, 1) if cells else (0, 1))
        self._profiles = np.zeros((lists if cells else 0, places, cells), np.uint8)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    def candidates(self, list_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
        """Return the indices of the samples whose values can enter their lists, ascending."""
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
        """Add N samples. Samples of one list must be adjacent, and a sample may be added to a list only once."""
        room = self._keys.shape[1] - self.most
        key_N = _key(value_N, sample_N)
        remaining = np.flatnonzero(key_N < self._weakest[list_N])
        while len(remaining):
            list_of = list_N[remaining]
            first = np.flatnonzero(np.diff(list_of, prepend=-1))
            count = np.diff(first, append=len(list_of))
            rank = np.arange(len(list_of)) - np.repeat(first, count)
            fits = rank < room
            lists, count = list_of[first], np.minimum(count, room)
            entering, list_of, rank = remaining[fits], list_of[fits], rank[fits]
            self._drop_weakest(lists[self._taken[lists] + count > self._keys.shape[1]])
            place = self._taken[list_of] + rank
            self._keys[list_of, place] = key_N[entering]
            self._positions[list_of, place] = position_N[entering]
            self._timesteps[list_of, place] = timestep_N[entering]
            if profile_NC is not None:
                self._profiles[list_of, self._profile_index[list_of, place]] = profile_NC[entering]
            self._taken[lists] += count.astype(np.int32)
            remaining = remaining[~fits]
            remaining = remaining[key_N[remaining] < self._weakest[list_N[remaining]]]

    def ranked(self) -> RankedSamples:
        """Return all lists. No sample may be added afterwards."""
        self._drop_weakest(np.arange(len(self._keys)))
        keys = self._keys[:, : self.most]
        unused = keys == EMPTY
        return RankedSamples(
            np.where(unused, 0, _value(keys)),
            np.where(unused, -1, unmix(keys.astype(np.uint32)).astype(np.int32)),
            np.where(unused, -1, self._positions[:, : self.most]),
            np.where(unused, -1, self._timesteps[:, : self.most]),
        )

    def profiles(self) -> np.ndarray:
        """Return the profiles, uint8 [lists, most, cells], in the order of :meth:`ranked`.

        Call it after :meth:`ranked`, and once: it sorts the profiles in place.
        """
        lists, places, cells = self._profiles.shape
        flat = self._profiles.reshape(-1, cells)
        for start in range(0, lists, 256):  # every write ends before the profiles that are still unread
            stop = min(start + 256, lists)
            source = np.arange(start, stop)[:, None] * places + self._profile_index[start:stop, : self.most]
            flat[start * self.most : stop * self.most] = flat[source].reshape(-1, cells)
        return flat[: lists * self.most].reshape(lists, self.most, cells)

    def _drop_weakest(self, lists: np.ndarray) -> None:
        """Sort ``lists`` and keep the ``most`` strongest samples of each."""
        columns = [self._keys, self._positions, self._timesteps]
        columns += [self._profile_index] * (len(self._profile_index) > 0)
        for block in np.split(lists, range(4096, len(lists), 4096)):
            order = np.argsort(self._keys[block], axis=1)
            for column in columns:
                column[block] = np.take_along_axis(column[block], order, 1)
            self._keys[block, self.most :] = EMPTY
            self._taken[block] = np.minimum(self._taken[block], self.most)
            self._weakest[block] = weakest = self._keys[block, self.most - 1]
            self._least[block] = np.where(weakest == EMPTY, 0, _value(weakest))


def _key(value_N: np.ndarray, sample_N: np.ndarray) -> np.ndarray:
    bits = np.uint64(0x7FFFFFFF) - np.ascontiguousarray(value_N, np.float32).view(np.uint32)
    return bits << np.uint64(32) | mix(sample_N.astype(np.uint32)).astype(np.uint64)


def _value(keys: np.ndarray) -> np.ndarray:
    bits = np.uint64(0x7FFFFFFF) - (keys >> np.uint64(32))
    return bits.astype(np.uint32).view(np.float32)


def mix(numbers: np.ndarray) -> np.ndarray:
    """Return the hashes of uint32 numbers: a fixed random permutation.

    The function is lowbias32 (Wellons 2018, "Prospecting for hash functions").
    """
    x = numbers
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def unmix(hashes: np.ndarray) -> np.ndarray:
    """Return the numbers whose hashes are ``hashes``: the inverse of :func:`mix`."""
    x = hashes
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x43021123)
    x = (x ^ (x >> np.uint32(15)) ^ (x >> np.uint32(30))) * np.uint32(0x1D69E2A5)
    return x ^ (x >> np.uint32(16))
