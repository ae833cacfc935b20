"""Which passages are for calibration, which are held out, and which are for training, so that no two parts share any.

Two passages that have a run of `RUN` tokens in common, wherever it begins in either, go to the same part. So do,
through them, all that are connected by such runs. This is what makes a held-out loss mean something: text that repeats
itself (quotations, licences, near copies of documents) would otherwise be learnt and then tested.

One exception: a form in which a data set writes its documents, such as the same instruction before each. Runs that
stand in at least `FORM_SHARE` of the documents and `FORM_DOCUMENTS` of them connect only passages that consist mostly
of such runs. Others are known by what they hold beside the form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RUN = 32
FORM_SHARE = 0.05
FORM_DOCUMENTS = 32
_ODD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Passages:
    """Neighbouring stretches of tokens. `starts`, `ends`, `document`: int64 `[passages]`."""

    starts: Indices
    ends: Indices
    document: Indices


@dataclass(frozen=True, slots=True)
class Connected:
    """`group`: int64 `[passages]`, passages with the same number must stay together. `forms`: whether there are runs
    that most documents have."""

    group: Indices
    forms: bool


def connect(ids: NDArray[np.int32], compared: NDArray[np.bool_], passages: Passages) -> Connected:
    """Find the passages that share a run, by hashing the run at every position (64 bits)."""
    count = len(passages.starts)
    owner = np.repeat(np.arange(count), passages.ends - passages.starts)
    hashes, places = _runs(ids, compared, passages.document[owner])
    runs = np.bincount(owner[places], minlength=count)
    order = np.argsort(hashes, kind="stable")
    hashes, places = hashes[order], places[order]
    shared = np.zeros(len(hashes), np.bool_)
    shared[1:] = same = hashes[1:] == hashes[:-1]
    shared[:-1] |= same
    hashes, places, alone = hashes[shared], places[shared], places[~shared]
    form = _forms(hashes, passages.document[owner[places]], int(passages.document.max()) + 1)
    mostly = np.bincount(owner[places[form]], minlength=count) > runs / 2
    in_form = _covered(places[form], len(ids))
    clean = _free_of(in_form, places)
    # What has no run of its own is compared as a whole: short documents, or short ones within a form.
    clean_runs = np.concatenate([places[clean], alone[_free_of(in_form, alone)]])
    without = np.flatnonzero((np.bincount(owner[clean_runs], minlength=count) == 0) & ~mostly)
    kept = clean | mostly[owner[places]]
    pairs = [
        _neighbours(hashes[kept], owner[places[kept]]),
        _neighbours(*_whole(ids, compared & ~in_form, passages, without)),
    ]
    return Connected(_components(count, np.concatenate(pairs)), bool((form & ~mostly[owner[places]]).any()))


def draw(group: Indices, sizes: Indices, wanted: int, taken: NDArray[np.bool_], chance: np.random.Generator) -> Indices:
    """Passages of whole groups, drawn at random from those not `taken`, until they have `wanted` tokens; in order.

    A group that is larger than what is missing by more than half is passed over, so that a text's many repetitions
    do not become its test. May come out short. Marks what it draws in `taken`.
    """
    group_size = np.bincount(group, weights=sizes).astype(np.int64)
    free = np.unique(group[~taken])
    ordinary = int(np.median(sizes)) if len(sizes) else 0
    chosen = np.zeros(len(group_size), np.bool_)
    have = 0
    for number in chance.permutation(free):
        if have >= wanted:
            break
        missing = wanted - have
        if group_size[number] <= max(missing + missing // 2, 2 * ordinary):
            chosen[number] = True
            have += int(group_size[number])
    drawn = np.flatnonzero(chosen[group] & ~taken)
    taken[drawn] = True
    return drawn


def run_hashes(ids: NDArray[np.int32]) -> NDArray[np.uint64]:
    """The hash of the run that begins at each position, uint64 `[n - RUN + 1]`; built by doubling, so five passes."""
    hashes = ids.astype(np.uint64) + np.uint64(1)
    hashes *= np.uint64(_ODD)
    hashes ^= hashes >> np.uint64(29)
    length, factor = 1, _ODD
    while length < RUN:
        factor = (factor * factor * 0xD1342543DE82EF95 + 2 * length) & _MASK | 1
        hashes = hashes[:-length] * np.uint64(factor) + hashes[length:]
        hashes ^= hashes >> np.uint64(31)
        length *= 2
    return hashes


def _runs(ids: NDArray[np.int32], compared: NDArray[np.bool_], document: Indices) -> tuple[NDArray[np.uint64], Indices]:
    """Hash and first position of every run that lies within one document and is compared throughout.

    Neighbouring passages may follow each other in their part, so runs across their border count, and belong to the
    passage that they begin in. Two equal runs are in different parts only if the passages that they begin in are.
    """
    if len(ids) < RUN:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    last = len(ids) - RUN + 1
    valid = (document[:last] == document[RUN - 1 :]) & _free_of(~compared, np.arange(last))
    return run_hashes(ids)[valid], np.flatnonzero(valid)


def _covered(places: Indices, length: int) -> NDArray[np.bool_]:
    """Which of `length` positions lie in one of the runs that begin at `places`."""
    change = np.zeros(length + 1, np.int64)
    np.add.at(change, places, 1)
    np.add.at(change, places + RUN, -1)
    return np.cumsum(change[:-1]) > 0


def _free_of(marked: NDArray[np.bool_], places: Indices) -> NDArray[np.bool_]:
    """Which of the runs that begin at `places` hold no marked position."""
    before = np.concatenate([[0], np.cumsum(marked)])
    return before[places + RUN] == before[places]


def _whole(
    ids: NDArray[np.int32], counting: NDArray[np.bool_], passages: Passages, chosen: Indices
) -> tuple[NDArray[np.uint64], Indices]:
    """Hashes of all counting tokens of the chosen passages, sorted, and the passages."""
    hashes = np.zeros(len(chosen), np.uint64)
    for place, passage in enumerate(chosen):
        part = slice(passages.starts[passage], passages.ends[passage])
        hashes[place] = hash(ids[part][counting[part]].tobytes()) & _MASK
    order = np.argsort(hashes, kind="stable")
    return hashes[order], chosen[order]


def _forms(hashes: NDArray[np.uint64], document: Indices, documents: int) -> NDArray[np.bool_]:
    """Which of the sorted hashes stand in so many documents that they are a form rather than a passage."""
    if not len(hashes):
        return np.zeros(0, np.bool_)
    number = np.concatenate([[0], np.cumsum(hashes[1:] != hashes[:-1])])
    # Within a hash, positions are in order and so are documents: each document's first place counts.
    first = np.concatenate([[True], (number[1:] != number[:-1]) | (document[1:] != document[:-1])])
    counts = np.bincount(number[first])
    return (counts >= max(FORM_DOCUMENTS, FORM_SHARE * documents))[number]


def _neighbours(hashes: NDArray[np.uint64], owner: Indices) -> Indices:
    """Pairs of different passages with the same hash, int64 `[pairs, 2]`, each once; enough to connect them all."""
    same = (hashes[1:] == hashes[:-1]) & (owner[1:] != owner[:-1])
    pairs = np.stack([owner[:-1][same], owner[1:][same]], axis=1)
    return np.unique(pairs, axis=0)


def _components(count: int, pairs: Indices) -> Indices:
    """Connected components by union-find: the component of each of `count` things."""
    parent = list(range(count))

    def root(thing: int) -> int:
        while parent[thing] != thing:
            parent[thing] = parent[parent[thing]]
            thing = parent[thing]
        return thing

    for one, other in pairs.tolist():
        parent[root(one)] = root(other)
    return np.unique([root(thing) for thing in range(count)], return_inverse=True)[1].reshape(-1)
