"""The whole way of an evaluation: run what is not done, score all, write the report."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ..version import __version__
from .predictions import PredictionStore
from .protocols import Protocol, get_protocol
from .report import remove_report, write_report
from .samples import ANSWERS, SampleSet, load_samples
from .scoring import check_files, score_samples
from .summary import summarise

if TYPE_CHECKING:
    from accelerate import PartialState

    from ..modeling_virst import VirstForVideoSegmentation
    from ..processing_virst import VirstProcessor
    from .runner import RunOptions

__all__ = ["evaluate_model", "processes", "score_run"]

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "numpy", "opencv-python-headless", "pillow")
# A process that is done waits for the others; a large benchmark takes days on a small machine.
LONGEST_WAIT = timedelta(days=30)


def processes(cpu: bool = False) -> "PartialState":
    """The processes of this run: one, or those that `accelerate launch` or `torchrun` started.

    Args:
        cpu (`bool`, *optional*, defaults to `False`): Whether to leave GPUs alone.

    Returns:
        `accelerate.PartialState`: Says which of them this is.
    """
    import torch
    from accelerate import PartialState

    # On a machine without a GPU accelerate takes the right backend only when it is told so.
    return PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=LONGEST_WAIT)


def evaluate_model(
    protocol_name: str,
    model: "VirstForVideoSegmentation",
    processor: "VirstProcessor",
    root: str | os.PathLike,
    output: str | os.PathLike,
    *,
    model_name: str = "",
    split: str | None = None,
    limit: int | None = None,
    options: "RunOptions | None" = None,
    state: "PartialState | None" = None,
    cache_dir: str | None = None,
    workers: int | None = None,
) -> dict[str, Any] | None:
    """Evaluate a model: predict what is not in `output` yet, score, and write the report. Each process calls this.

    Args:
        protocol_name (`str`): A key of [`PROTOCOLS`].
        model ([`VirstForVideoSegmentation`]): On its device, in evaluation mode.
        processor ([`VirstProcessor`]): Its processor.
        root (`str` or `os.PathLike`): Folder of the data set.
        output (`str` or `os.PathLike`): Folder for predictions and results; an interrupted run goes on in it.
        model_name (`str`, *optional*): Name for the report.
        split (`str`, *optional*): Split of `own` data.
        limit (`int`, *optional*): Take the first videos only; the results are marked as partial.
        options ([`~runner.RunOptions`], *optional*): How the model is run.
        state (`accelerate.PartialState`, *optional*): The processes.
        cache_dir (`str`, *optional*): Where `datasets` keeps its copy of the annotations.
        workers (`int`, *optional*): Processes that score.

    Returns:
        `dict` or `None`: The content of `results.json`; `None` in all processes but the main one.

    Raises:
        EvaluationError: The folder holds another run, or the predictions do not fit the data set.
        DataError: The data set is missing or has a defect.
    """
    from ..modules.tracker import EXACT
    from .runner import RunOptions, model_hash, run_predictions

    state = processes() if state is None else state
    options = RunOptions() if options is None else options
    with state.main_process_first():
        samples = load_samples(get_protocol(protocol_name), root, split=split, limit=limit, cache_dir=cache_dir)
    store = PredictionStore(output)
    if state.is_main_process:
        settings = {
            "protocol": protocol_name,
            "split": samples.protocol.split,
            "model_hash": model_hash(model, processor),
            "dtype": str(model.dtype).removeprefix("torch."),
            "batch_expressions": options.batch_expressions,
            "max_new_tokens": options.max_new_tokens,
            "data": samples.fingerprint,
            "virst_hf": __version__,
        }
        # Only where there is something to say: runs of before know no such key.
        if options.tracking != EXACT:
            settings["tracking"] = asdict(options.tracking)
        notes = {
            "model": model_name,
            "root": str(samples.root),
            "limit": limit,
            "device": str(model.device),
            "num_processes": state.num_processes,
            "versions": versions(),
        }
        store.begin(settings, notes)
        remove_report(store.folder)
    state.wait_for_everyone()
    run_hash = store.read_run()["settings_hash"]
    run_predictions(samples, store, run_hash, model, processor, options, state)
    if not state.is_main_process:
        return None
    return _score(samples, store, workers)


def score_run(
    output: str | os.PathLike,
    root: str | os.PathLike | None = None,
    *,
    cache_dir: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Score the predictions of a run again, without its model, and write the report.

    Args:
        output (`str` or `os.PathLike`): Output folder of `virst evaluate`.
        root (`str` or `os.PathLike`, *optional*): Folder of the data set; that of the run when not given.
        cache_dir (`str`, *optional*): Where `datasets` keeps its copy of the annotations.
        workers (`int`, *optional*): Processes that score.

    Returns:
        `dict`: The content of `results.json`.

    Raises:
        EvaluationError: The folder holds no run, or its predictions are missing, unreadable, of another size or of
            unknown expressions.
        DataError: The data set is missing or has a defect.
    """
    store = PredictionStore(output)
    run = store.read_run()
    protocol = get_protocol(run["settings"]["protocol"])
    split = run["settings"].get("split") if protocol.split is None else None
    samples = load_samples(protocol, root or run["root"], split=split, limit=run.get("limit"), cache_dir=cache_dir)
    return _score(samples, store, workers)


def _score(samples: SampleSet, store: PredictionStore, workers: int | None) -> dict[str, Any]:
    """Scores, results.json and the pages."""
    run = store.read_run()
    remove_report(store.folder)
    header = _header(samples.protocol, samples, run)
    if samples.protocol.server or _without_masks(samples):
        check_files(samples, store)
        failures = _failures(samples, store, run["settings_hash"])
        results, records = header | _counts(samples) | {"failures": failures}, []
    else:
        records = score_samples(samples, store, run["settings_hash"], workers)
        results = header | summarise(samples.protocol, records)
    _add_notes(results, samples)
    write_report(store, samples, results, records)
    return results


def _header(protocol: Protocol, samples: SampleSet, run: Mapping[str, Any]) -> dict[str, Any]:
    """What a number needs to be compared with another."""
    return {
        "protocol": protocol.name,
        "dataset": protocol.dataset,
        "config": protocol.config,
        "split": protocol.split,
        "averaging": protocol.averaging,
        "rule": protocol.rule,
        "partial": samples.is_partial,
        "model": run.get("model", ""),
        "model_hash": run["settings"].get("model_hash", ""),
        "settings": run["settings"],
        "settings_hash": run["settings_hash"],
        "device": run.get("device", ""),
        "versions": run.get("versions", {}),
        "scored_with": versions(),
        "notes": [],
    }


def _add_notes(results: dict[str, Any], samples: SampleSet) -> None:
    """What a reader must know before comparing."""
    expected, found = samples.protocol.expected_expressions, sum(len(unit.indices) for unit in samples.units)
    if samples.is_partial:
        results["notes"].append(
            f"A trial: {len(samples.units)} of {len(samples.all_units)} videos. These are not the benchmark's numbers."
        )
    elif expected is not None and found != expected:
        results["notes"].append(f"The released split has {expected} expressions, this one has {found}.")
    if samples.protocol.server:
        results["notes"].append(
            f"No scores here: the server has the masks. `virst pack {samples.protocol.name}` writes the zip."
        )
    elif "J&F" not in results and "groups" not in results:
        results["notes"].append("No scores: the data set has no masks.")
    if results["failures"]:
        results["notes"].append(f"{len(results['failures'])} samples failed and count as the protocol says.")


def _without_masks(samples: SampleSet) -> bool:
    """Whether own data are for prediction alone. Where some have masks, the others are an error of scoring."""
    masks = samples.dataset.data.column("masks")
    return masks.null_count == len(masks) and not any(samples.of_kind(ANSWERS))


def _counts(samples: SampleSet) -> dict[str, Any]:
    return {
        "num_videos": len(samples.units),
        "num_expressions": sum(len(unit.indices) for unit in samples.units),
    }


def _failures(samples: SampleSet, store: PredictionStore, run_hash: str) -> list[dict[str, str]]:
    """Samples that failed, where nothing is scored."""
    failures = []
    for unit in samples.units:
        content = store.read(unit, run_hash)
        for key, text in zip(unit.expression_ids, unit.expressions, strict=True):
            entry = content["expressions"][key]
            if "error" in entry:
                names = {"video": unit.video_id, "expression_id": key, "expression": text}
                failures.append(names | {"error": entry["error"]})
    return failures


def versions() -> dict[str, str]:
    """Versions of what may change a number in the last digits.

    Returns:
        `dict[str, str]`: Name -> version.
    """
    found = {"virst_hf": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
