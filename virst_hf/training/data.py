"""From the arguments to what training and the validation loss draw from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data import CATALOG, CATEGORIES, CATEGORY_WEIGHTS, ClipTransform, Mixture, load
from ..errors import DataError
from .arguments import VirstTrainingArguments
from .sources import check_sources

if TYPE_CHECKING:
    from datasets import Dataset

    from ..processing_virst import VirstProcessor

__all__ = ["describe_mixture", "load_sources", "training_mixture", "validation_mixture"]

# The validation loss is of the same draws whatever the seed of the training is.
VALIDATION_SEED = 0


def load_sources(
    args: VirstTrainingArguments, sources: Sequence[Mapping[str, Any]], what: str = "data"
) -> dict[str, "Dataset"]:
    """Load the sources that a run names. The main process makes the Arrow copies, the others read them.

    Args:
        args ([`VirstTrainingArguments`]): For `data_root`.
        sources (`Sequence[dict]`): Each with `name` and `root`; `split` is `"train"` when not given; `config` and
            options of the set where needed. A `weight` is left to the mixture.
        what (`str`, *optional*, defaults to `"data"`): Where they stand, for messages.

    Returns:
        `dict[str, datasets.Dataset]`: Rows by a name of their own, such as `"shapes/rvos/train"`.

    Raises:
        ConfigError: A source has no root, or a value of another type.
        DataError: A name is unknown, a root holds no such data, or the data have a defect; the message says which
            source it is.
    """
    check_sources(what, sources)
    found: dict[str, Dataset] = {}
    with args.main_process_first(desc="data sets"):
        for number, source in enumerate(sources):
            options = {key: value for key, value in source.items() if key != "weight"}
            name, root, split = options.pop("name"), options.pop("root"), options.pop("split", "train")
            if name not in CATALOG:
                raise DataError(
                    f"Source {number} of {what} has the name {name!r}; expected one of {', '.join(CATALOG)}."
                )
            try:
                rows = load(name, args.path(root), split, **options)
            except DataError as error:
                raise DataError(f"Source {number} of {what}, {name}: {error}") from error
            label = "/".join(str(part) for part in (name, options.get("config"), split) if part)
            copies = sum(1 for other in found if other == label or other.startswith(f"{label}#"))
            found[f"{label}#{copies + 1}" if copies else label] = rows
    return found


def training_mixture(args: VirstTrainingArguments, processor: "VirstProcessor") -> Mixture:
    """What a run draws from: as many draws as its steps take.

    Args:
        args ([`VirstTrainingArguments`]): The run.
        processor ([`VirstProcessor`]): Of the model.

    Returns:
        [`Mixture`]: Its items are samples for [`VirstCollator`].

    Raises:
        DataError: The data are missing or have a defect, or the weights do not fit them.
    """
    sources = load_sources(args, args.data)
    transform = ClipTransform(
        processor,
        supervise=args.training_stage.supervise,
        # The same frames in each epoch, or nothing that is kept would be found again.
        frame_jitter=args.cache_features is None,
        fast_resize=args.fast_resize,
    )
    return Mixture(
        sources,
        num_draws=args.max_steps * args.draws_per_step,
        seed=args.seed if args.data_seed is None else args.data_seed,
        weights=_weights(sources) if args.weights is None else args.weights,
        source_weights=_weights_inside(sources, args.data),
        expressions_per_clip=args.expressions_per_clip,
        transform=transform,
    )


def validation_mixture(
    args: VirstTrainingArguments, processor: "VirstProcessor", rows: "Dataset | None" = None
) -> Mixture | None:
    """What the validation loss is computed on: the same draws each time, without jitter.

    Args:
        args ([`VirstTrainingArguments`]): The run.
        processor ([`VirstProcessor`]): Of the model.
        rows (`datasets.Dataset`, *optional*): Records of the protocol, taken where the plan names no data.

    Returns:
        [`Mixture`] or `None`: `None` where there is no validation.

    Raises:
        DataError: The data are missing or have a defect.
    """
    plan = args.validation_plan
    if plan is None:
        return None
    sources = load_sources(args, plan.data, "validation data") if plan.data else _by_category(rows)
    transform = ClipTransform(
        processor, supervise=args.training_stage.supervise, jitter=False, fast_resize=args.fast_resize
    )
    return Mixture(
        sources,
        num_draws=plan.samples,
        seed=VALIDATION_SEED,
        weights=_weights(sources),
        source_weights=_weights_inside(sources, plan.data or []),
        transform=transform,
    )


def _by_category(rows: "Dataset") -> dict[str, "Dataset"]:
    """The records of a protocol, which may be of two categories: expressions and questions."""
    found = list(rows["category"])
    return {
        category: rows.select([index for index, other in enumerate(found) if other == category])
        for category in CATEGORIES
        if category in found
    }


def _weights_inside(names: Iterable[str], sources: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """The weights that the sources state: all of them or none."""
    weights = [source["weight"] for source in sources if "weight" in source]
    return dict(zip(names, weights, strict=True)) if weights else None


def _weights(sources: Mapping[str, "Dataset"]) -> dict[str, float]:
    """The weights of the paper, of the categories that are there."""
    # One look through a column; as a list it would hold a text for each of a million rows.
    present = {category for rows in sources.values() for category in rows.unique("category")}
    return {category: weight for category, weight in CATEGORY_WEIGHTS.items() if category in present}


def describe_mixture(mixture: Mixture) -> str:
    """A table of what is drawn, to be printed when a run starts.

    Args:
        mixture ([`Mixture`]): Of the training.

    Returns:
        `str`: A line for each set: rows, share of the draws, and how often each row comes.
    """
    width = max(map(len, mixture.names))
    lines = [f"{mixture.num_draws:,} draws, seed {mixture.seed}, mixture {mixture.fingerprint()}"]
    parts = zip(mixture.names, mixture.categories, mixture.sizes, mixture.probabilities, strict=True)
    for name, category, size, probability in parts:
        times = mixture.num_draws * probability / size
        lines.append(f"  {name:{width}}  {category:21}  {size:>9,} rows  {probability:6.1%}  each {times:.2f} times")
    return "\n".join(lines)
