"""The mixture of training: draws from five categories by weight, each a pure function of the seed and its number.

Nothing is drawn from a running generator. The numbers come from Philox, a generator that is a function of a key and a
counter: the key is the seed, the counter says what is drawn. So draw `k` is the same in every process, with any number
of workers, and after a run is resumed; all the state there is, is `k`.
"""

import hashlib
import json
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import DataError
from .records import CATEGORIES, CATEGORY_WEIGHTS

__all__ = ["Mixture", "MixtureStream", "Rows", "Transform"]

# Rows of one set: a list of records or a `datasets.Dataset`.
Rows = Sequence[Mapping[str, Any]]
# What makes a sample of the rows of a draw (several expressions about one video) and a source of randomness.
Transform = Callable[[list[Mapping[str, Any]], random.Random], Any]

# Draws that are planned together.
BLOCK = 1024
# Planned blocks that are kept: with several workers, a few are in use at a time.
KEPT_BLOCKS = 4
# What a number is drawn for. Each has counters of its own.
SOURCES, ORDER, DRAW = range(3)
# Most rows that are read at a time when a column of a set is gone through.
READ_BATCH = 10_000


def philox(seed: int, purpose: int, first: int, second: int, count: int) -> np.ndarray:
    """`count` random words of 64 bits; NumPy keeps this stream the same in every version."""
    # The lowest counter is the one that a stream counts up.
    # As uint64 from the start: a list of Python numbers may become floats, in which large seeds are the same.
    key, counter = (np.array(words, dtype=np.uint64) for words in ([seed, purpose], [0, first, second, 0]))
    return np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count), dtype=np.uint64)


class Mixture(Dataset):
    """
    A map-style data set whose item `k` is draw number `k`: a category by weight, a set of it, and a row of that set.

    Rows are drawn without replacement: each is drawn once before any of its set is drawn again, in an order of its own
    each time. A row is an expression, not a video, so that videos with many expressions come as often as they have
    some to offer. A sampler may shard or shuffle the draws as it likes; in their own order the frequencies of the
    categories follow the weights throughout.

    Args:
        sources (`Mapping[str, Rows]` or `Sequence[Rows]`):
            Sets of rows, each of one category: lists of records or `datasets.Dataset`s. Their names are the keys, or
            `"source/split"` of the first row.
        num_draws (`int`): How many draws there are, the `len()` of the mixture.
        seed (`int`, *optional*, defaults to 0): From 0 to 2^64 - 1.
        weights (`Mapping[str, float]`, *optional*): How often each category is drawn. [4, 3, 1, 12, 1] as in the paper
            when not given; then each category needs a set.
        source_weights (`Mapping[str, float]`, *optional*): How often each set is drawn, within its category. By the
            number of rows when not given, so that every row of a category is as likely as any other.
        expressions_per_clip (`int`, *optional*, defaults to 1): A draw brings up to this many expressions about its
            video, the drawn one first: they share the video's frames and features. Further ones are not counted as
            drawn.
        transform (`Callable`, *optional*): Makes an item of a list of rows and a `random.Random` that belongs to the
            draw, such as [`ClipTransform`]. The list of rows itself is the item when not given.

    Raises:
        DataError: A category lacks rows, a set is empty or of several categories, or a weight makes no sense.

    Example:

    ```python
    >>> from virst_hf.data.mixture import Mixture
    >>> from virst_hf.data.records import make_row
    >>> def rows(category, count):
    ...     return [make_row(video_id=str(i // 2), expression_id=str(i), expression=f"shape {i}", category=category,
    ...                      source=f"my-{category}", split="train") for i in range(count)]
    >>> mixture = Mixture([rows("rvos", 6), rows("referring_image", 4)], num_draws=1000, seed=1,
    ...                   weights={"rvos": 4, "referring_image": 1})
    >>> mixture.names, mixture[5] == mixture[5]
    (['my-rvos/train', 'my-referring_image/train'], True)
    >>> sources, rows = mixture.plan(0, 1000)
    >>> round(float((sources == 0).mean()), 1)
    0.8

    ```
    """

    def __init__(
        self,
        sources: Mapping[str, Rows] | Sequence[Rows],
        num_draws: int,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        source_weights: Mapping[str, float] | None = None,
        expressions_per_clip: int = 1,
        transform: Transform | None = None,
    ) -> None:
        for name, value, least in (
            ("num_draws", num_draws, 1),
            ("seed", seed, 0),
            ("expressions_per_clip", expressions_per_clip, 1),
        ):
            if not isinstance(value, int | np.integer) or not least <= value < 2**64:
                raise DataError(f"{name} must be a whole number of at least {least}, found {value!r}.")
        self.num_draws, self.seed = int(num_draws), int(seed)
        self.expressions_per_clip = int(expressions_per_clip)
        self.transform = transform
        self.names, self.sources = _name_sources(sources)
        self.categories = [_category(name, rows) for name, rows in zip(self.names, self.sources, strict=True)]
        self.sizes = np.array([len(rows) for rows in self.sources])
        self.probabilities = _probabilities(self.names, self.categories, self.sizes, weights, source_weights)
        # The last border is 1 but for rounding, and a word just below 2^64 must not fall behind it.
        borders = np.cumsum(self.probabilities)
        last = int(np.flatnonzero(self.probabilities)[-1])
        borders[last:] = np.inf
        self._borders = borders
        self._counts = [np.zeros(len(self.sources), dtype=np.int64)]  # draws of each set before each block
        self._blocks: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._clips: dict[int, _Clips] = {}
        if self.expressions_per_clip > 1:
            self._clips = {i: _Clips(rows) for i, rows in enumerate(self.sources) if self.probabilities[i] > 0}

    def __len__(self) -> int:
        return self.num_draws

    def __getitem__(self, k: int) -> Any:
        k = int(k)
        if not -self.num_draws <= k < self.num_draws:
            raise IndexError(f"There are draws 0 to {self.num_draws - 1}, asked for {k}.")
        k %= self.num_draws
        rows, rng = self.rows(k), self.rng(k)
        return rows if self.transform is None else self.transform(rows, rng)

    def rng(self, k: int) -> random.Random:
        """The generator that belongs to draw `k`: for its frames, templates and jitter.

        Args:
            k (`int`): Number of the draw.

        Returns:
            `random.Random`: A new generator, the same one each time.
        """
        return random.Random(int(philox(self.seed, DRAW, k, 0, 1)[0]))

    def rows(self, k: int) -> list[Mapping[str, Any]]:
        """The rows of draw `k`, before the transform.

        Args:
            k (`int`): Number of the draw.

        Returns:
            `list[dict]`: The row that was drawn, and further expressions about its video where asked for.
        """
        sources, rows = self._block(k // BLOCK)
        source, row = int(sources[k % BLOCK]), int(rows[k % BLOCK])
        chosen = [row]
        if self._clips:
            others = self._clips[source].others(row)
            count = min(self.expressions_per_clip - 1, len(others))
            words = philox(self.seed, DRAW, k, 1, len(others))
            chosen += others[np.argsort(words, kind="stable")[:count]].tolist()
        return [self.sources[source][i] for i in chosen]

    def plan(self, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """What is drawn, without reading it.

        Args:
            start (`int`, *optional*, defaults to 0): First draw.
            stop (`int`, *optional*): Draw to stop before; the end when not given.

        Returns:
            `tuple[numpy.ndarray, numpy.ndarray]`: For each draw the index of its set (of `names`, `sources` and
            `categories`) and of its row in that set, each of shape `(stop - start,)`.

        Raises:
            DataError: There are no such draws.
        """
        stop = self.num_draws if stop is None else stop
        if not 0 <= start < stop <= self.num_draws:
            raise DataError(f"There are draws 0 to {self.num_draws}, asked for {start} to {stop}.")
        parts = []
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            first = block * BLOCK
            part = slice(max(start - first, 0), min(stop - first, BLOCK))
            parts.append([values[part] for values in self._block(block)])
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def fingerprint(self) -> str:
        """A short text that differs where the draws of two mixtures do: for checking what a run is resumed with.

        Returns:
            `str`: 16 hexadecimal digits of the seed, the names, sizes and probabilities of the sets, and the number of
            expressions; the contents of the rows are not looked at, and more draws are the same mixture.
        """
        facts = [self.seed, self.names, self.sizes.tolist(), self.probabilities.tolist(), self.expressions_per_clip]
        return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    # --- planning ----------------------------------------------------------------------------------------------------
    def _choose_sources(self, block: int) -> np.ndarray:
        """The set of each draw of a block."""
        uniform = (philox(self.seed, SOURCES, block, 0, BLOCK) >> np.uint64(11)) * 2.0**-53
        return np.searchsorted(self._borders, uniform, side="right")

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Set and row of each draw of a block."""
        if block in self._blocks:
            self._blocks.move_to_end(block)
            return self._blocks[block]
        # Which row it is depends on how often its set was drawn before: counted once for all blocks up to this one.
        while len(self._counts) <= block:
            drawn = np.bincount(self._choose_sources(len(self._counts) - 1), minlength=len(self.sources))
            self._counts.append(self._counts[-1] + drawn)
        sources = self._choose_sources(block)
        rows = np.empty(BLOCK, dtype=np.int64)
        for source in np.unique(sources):
            places = np.flatnonzero(sources == source)
            numbers = self._counts[block][source] + np.arange(len(places))
            epochs, offsets = np.divmod(numbers, self.sizes[source])
            for epoch in np.unique(epochs):
                now = epochs == epoch
                rows[places[now]] = self._order(int(source), int(epoch))[offsets[now]]
        self._blocks[block] = (sources, rows)
        while len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return sources, rows

    def _order(self, source: int, epoch: int) -> np.ndarray:
        """The order in which the rows of a set are drawn for the `epoch`-th time."""
        known = self._orders.get(source)
        if known is None or known[0] != epoch:
            words = philox(self.seed, ORDER, source, epoch, int(self.sizes[source]))
            known = self._orders[source] = (epoch, np.argsort(words, kind="stable").astype(np.int32))
        return known[1]


class MixtureStream(IterableDataset):
    """
    The draws of a [`Mixture`] as a stream that is split by process and worker: each draw appears exactly once.

    Draw `k` goes to process `k % num_processes`. A `DataLoader` with workers shares the draws of a process among them,
    `batch_size` in a row, and joins the batches of its workers in turn: so its batches are the same for any number of
    workers. A stream is one pass: after its last draw it gives nothing more.

    Args:
        mixture ([`Mixture`]): What is drawn.
        start (`int`, *optional*, defaults to 0): First draw, of all processes together.
        process_index (`int`, *optional*, defaults to 0): Number of this process.
        num_processes (`int`, *optional*, defaults to 1): How many processes share the draws.
        batch_size (`int`, *optional*, defaults to 1): That of the `DataLoader` with workers.

    Raises:
        DataError: A number is out of range.

    Example:

    ```python
    >>> from virst_hf.data.mixture import Mixture, MixtureStream
    >>> from virst_hf.data.records import make_row
    >>> rows = [make_row(video_id="0", expression_id=str(i), expression=f"shape {i}", category="rvos", source="own",
    ...                  split="train") for i in range(4)]
    >>> stream = MixtureStream(Mixture([rows], num_draws=5, weights={"rvos": 1}), process_index=1, num_processes=2)
    >>> drawn = next(iter(stream))
    >>> stream.state_dict()["position"], len(list(stream))
    (2, 1)

    ```
    """

    def __init__(
        self,
        mixture: Mixture,
        start: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        batch_size: int = 1,
    ) -> None:
        if not 0 <= start <= len(mixture):
            raise DataError(f"start must be in 0 .. {len(mixture)}, the number of draws, found {start}.")
        if num_processes < 1 or not 0 <= process_index < num_processes:
            raise DataError(
                f"process_index must be in 0 .. num_processes - 1, found {process_index} of {num_processes}."
            )
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, found {batch_size}.")
        self.mixture = mixture
        self.start = self.position = start
        self.process_index, self.num_processes = process_index, num_processes
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        first = (self.position - self.start) // self.num_processes
        # Draws of a process are counted from `start`, so that the loader's turns begin with worker 0.
        for i in range(first, -(-(len(self.mixture) - self.start) // self.num_processes)):
            k = self.start + i * self.num_processes + (self.process_index - self.start) % self.num_processes
            if i // self.batch_size % workers != worker:
                continue
            if k >= len(self.mixture):
                break
            item = self.mixture[k]
            # Set before the item is given: who takes the state after an item has that item behind him.
            self.position = self.start + (i + 1) * self.num_processes
            yield item

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands.

        Without workers, this is to be saved. With the workers of a plain `DataLoader`, the stream in the main process
        never moves: count the draws and resume with `start`. A loader that keeps the state of its workers
        (`torchdata.stateful_dataloader`) calls this in each of them.

        Returns:
            `dict`: `start` and `position` (all draws before it are done, by all processes), and `mixture`, the
            fingerprint of what is drawn.
        """
        return {"start": self.start, "position": self.position, "mixture": self.mixture.fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stream stood, with any number of processes.

        Args:
            state (`dict`): From `state_dict`.

        Raises:
            DataError: It is damaged, or the state of another mixture.
        """
        position, start = (state.get(name) for name in ("position", "start"))
        if not (isinstance(position, int) and isinstance(start, int) and 0 <= start <= position):
            raise DataError(
                f"This is no state of a mixture: it starts at {start!r} and stands at {position!r}; expected numbers "
                "of draws."
            )
        if state.get("mixture") != self.mixture.fingerprint():
            raise DataError(
                "The state belongs to another mixture: seed, sets, weights or expressions_per_clip differ. Resume "
                "with those of the first run, or start anew without this state."
            )
        self.position = position
        # In a worker the loader keeps its turns, which are counted from the first start.
        self.start = position if get_worker_info() is None else start


# --- sets ------------------------------------------------------------------------------------------------------------
class _Clips:
    """The rows about each video of a set: about 12 bytes a row."""

    def __init__(self, rows: Rows) -> None:
        known: dict[tuple, int] = {}
        codes = [known.setdefault(key, len(known)) for key in _columns(rows, ("source", "split", "video_id"))]
        self.video = np.array(codes, dtype=np.int32)
        self.order = np.argsort(self.video, kind="stable").astype(np.int32)
        self.starts = np.searchsorted(self.video[self.order], np.arange(len(known) + 1)).astype(np.int32)

    def others(self, row: int) -> np.ndarray:
        """The other rows about the video of a row."""
        video = self.video[row]
        rows = self.order[self.starts[video] : self.starts[video + 1]]
        return rows[rows != row]


def _columns(rows: Rows, names: Sequence[str]) -> Iterator[tuple]:
    """The values of some columns, row by row; of an Arrow data set nothing else is read."""
    if not hasattr(rows, "select_columns"):
        yield from (tuple(row[name] for name in names) for row in rows)
        return
    for batch in rows.select_columns(list(names)).iter(READ_BATCH):
        yield from zip(*(batch[name] for name in names), strict=True)


def _name_sources(sources: Mapping[str, Rows] | Sequence[Rows]) -> tuple[list[str], list[Rows]]:
    """Names and rows of the sets; an empty one is an error."""
    if isinstance(sources, Mapping):
        named = [(str(name), rows) for name, rows in sources.items()]
    elif isinstance(sources, Sequence) and not any(isinstance(rows, Mapping) for rows in sources):
        named = [("", rows) for rows in sources]
    else:
        raise DataError("sources must be a list of sets, or a dictionary of name and set; found one set alone.")
    if not named:
        raise DataError("A mixture needs at least one set, found none.")
    names: list[str] = []
    for position, (name, rows) in enumerate(named):
        if not hasattr(rows, "__getitem__") or not hasattr(rows, "__len__"):
            raise DataError(
                f"Set {name or position} of the mixture has no numbered rows, it is a {type(rows).__name__}. Load it "
                "with streaming=False: its rows then lie in an Arrow file, which is not read into memory either."
            )
        if len(rows) == 0:
            raise DataError(
                f"Set {name or position} of the mixture has no rows. Check its root and split with "
                "`virst data doctor`, or leave it out."
            )
        name = name or f"{rows[0]['source']}/{rows[0]['split']}"
        copies = sum(1 for other in names if other == name or other.startswith(f"{name}#"))
        names.append(f"{name}#{copies + 1}" if copies else name)
    return names, [rows for _, rows in named]


def _category(name: str, rows: Rows) -> str:
    """The one category of all rows of a set."""
    found = sorted({category for (category,) in _columns(rows, ("category",))})
    if len(found) != 1 or found[0] not in CATEGORIES:
        raise DataError(
            f"The rows of {name} have the categories {', '.join(map(repr, found))}; expected one of "
            f"{', '.join(CATEGORIES)} for all of them. Filter the set into one for each category."
        )
    return found[0]


def _check_weights(kind: str, weights: Mapping[str, float], known: Sequence[str]) -> None:
    for name, weight in weights.items():
        if name not in known:
            raise DataError(f"Unknown {kind} {name!r} in the weights; expected {', '.join(known)}.")
        number = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            raise DataError(f"The weight of {name} must be a number of at least 0, found {weight!r}.")


def _probabilities(
    names: Sequence[str],
    categories: Sequence[str],
    sizes: np.ndarray,
    weights: Mapping[str, float] | None,
    source_weights: Mapping[str, float] | None,
) -> np.ndarray:
    """Probability of each set."""
    chosen = CATEGORY_WEIGHTS if weights is None else weights
    _check_weights("category", chosen, CATEGORIES)
    _check_weights("set", source_weights or {}, names)
    present = [category for category in CATEGORIES if category in categories]
    lacking = [category for category in CATEGORIES if chosen.get(category, 0) > 0 and category not in present]
    if lacking:
        fitting = {category: chosen[category] for category in present if category in chosen}
        raise DataError(
            f"The mixture has no rows of the category {', '.join(lacking)}. Add a set of it, or pass weights without "
            f"it: weights={fitting}."
        )
    unused = [category for category in present if category not in chosen]
    if unused:
        raise DataError(f"The category {', '.join(unused)} has rows but no weight. Add one (0 leaves it out).")
    total = sum(chosen.values())
    if not total > 0:
        raise DataError("All weights of the mixture are 0; at least one category must have a weight.")
    shares = sizes.astype(np.float64)
    if source_weights is not None:
        without = [name for name in names if name not in source_weights]
        if without:
            raise DataError(f"source_weights lacks {', '.join(without)}; name every set of the mixture.")
        shares = np.array([float(source_weights[name]) for name in names])
    out = np.zeros(len(names))
    for category in present:
        here = np.array([c == category for c in categories])
        if chosen[category] > 0 and not shares[here].sum() > 0:
            raise DataError(f"All sets of the category {category} have the weight 0.")
        if chosen[category] > 0:
            out[here] = chosen[category] / total * shares[here] / shares[here].sum()
    return out
