"""Runs a model on the videos of a protocol, on one process or several, and keeps the predictions.

Nothing is random: fixed frames, the first prompt template, greedy answers. A video is the unit of work, so that all of
its expressions share its features; which process does it has no influence on its numbers.
"""

import gc
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from ..errors import EvaluationError, VirstError
from ..modules.tracker import EXACT, TrackingOptions
from ..processing_virst import iter_masks
from ..rle import check_rle, encode_rle
from .predictions import PredictionStore
from .samples import ANSWERS, SampleSet, Unit, open_frames

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import BatchFeature

    from ..modeling_outputs import VirstVideoFeatures
    from ..modeling_virst import VirstForVideoSegmentation
    from ..processing_virst import VirstProcessor

__all__ = ["RunOptions", "model_hash", "predict_unit", "run_predictions", "shard_units"]

# What may go wrong with one sample and must not end the run: bad data, a file that cannot be read, a lack of memory
# (which torch tells as a RuntimeError).
SAMPLE_ERRORS = (VirstError, OSError, RuntimeError, MemoryError)
# Features of more frames than this are not kept: at full size a frame has 17 MB.
MAX_KEPT_FRAMES = 256
# How often the main process looks what the others have done: a folder may have thousands of files.
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class RunOptions:
    """
    How a model is run; all of it may change numbers in the last digits, so a run states it.

    Args:
        batch_expressions (`int`, *optional*, defaults to 8): Expressions of a video that are tracked together.
        max_new_tokens (`int`, *optional*, defaults to 64): Longest answer to a question, in tokens.
        tracking ([`TrackingOptions`], *optional*): Ways to be faster; as in the paper when not given.
    """

    batch_expressions: int = 8
    max_new_tokens: int = 64
    tracking: TrackingOptions = EXACT

    def __post_init__(self) -> None:
        if self.batch_expressions < 1 or self.max_new_tokens < 1:
            raise EvaluationError(
                f"At least one expression and one token at a time, found {self.batch_expressions} and "
                f"{self.max_new_tokens}."
            )


def model_hash(model: "VirstForVideoSegmentation", processor: "VirstProcessor") -> str:
    """A hash of weights, configuration and preprocessing, whatever files they came from.

    Args:
        model ([`VirstForVideoSegmentation`]): The model, in the dtype it runs in.
        processor ([`VirstProcessor`]): Its processor.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    digest = hashlib.sha256()
    settings = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_name")}
    views = processor.video_processor.to_dict()
    for part in (settings, views, processor.num_seg_tokens, processor.tokenizer.get_vocab()):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(content.view(torch.uint8).numpy() if content.numel() else b"")
    return digest.hexdigest()[:32]


def shard_units(units: Sequence[Unit], num_shards: int) -> list[list[Unit]]:
    """Share videos out so that every process has about as much to do.

    Args:
        units (`Sequence[Unit]`): Videos.
        num_shards (`int`): Number of processes.

    Returns:
        `list[list[Unit]]`: One list for each process, in the given order; every unit is in one of them.
    """
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    loads = [0] * num_shards
    # The longest first, each to the process that has least.
    for index in sorted(range(len(units)), key=lambda index: -units[index].cost):
        lightest = loads.index(min(loads))
        shards[lightest].append(index)
        loads[lightest] += units[index].cost
    return [[units[index] for index in sorted(shard)] for shard in shards]


def run_predictions(
    samples: SampleSet,
    store: PredictionStore,
    run_hash: str,
    model: "VirstForVideoSegmentation",
    processor: "VirstProcessor",
    options: RunOptions,
    state: "PartialState",
) -> None:
    """Predict all videos that are not done yet; every process calls this, and all return when all are done.

    Args:
        samples ([`SampleSet`]): What to run.
        store ([`PredictionStore`]): Where predictions go.
        run_hash (`str`): Identity of the run.
        model ([`VirstForVideoSegmentation`]): In evaluation mode.
        processor ([`VirstProcessor`]): Its processor.
        options ([`RunOptions`]): How to run it.
        state (`accelerate.PartialState`): The processes.
    """
    # The main process says what is left: another would already see files that a third has written meanwhile.
    left: list[Any] = [None]
    if state.is_main_process:
        done = [store.is_complete(unit, run_hash) for unit in samples.units]
        left = [[index for index, is_done in enumerate(done) if not is_done]]
        for index in left[0]:
            store.path(samples.units[index]).unlink(missing_ok=True)
    if state.num_processes > 1:
        broadcast_object_list(left)
    todo = [samples.units[index] for index in left[0]]
    mine = shard_units(todo, state.num_processes)[state.process_index]
    with Progress(store, todo, samples, enabled=state.is_main_process) as progress:
        for unit in mine:
            rows = samples.rows(unit, with_masks=False)
            results = predict_unit(unit, rows, model, processor, options)
            first = rows[0]
            size = {"height": first["height"], "width": first["width"], "frames": first["frame_names"]}
            store.write(unit, run_hash, results, **size)
            progress.count(unit)
        progress.wait()
    state.wait_for_everyone()


class Progress:
    """
    A bar of expressions, with the time that is left, for all processes: it looks which files are there.

    Args:
        store ([`PredictionStore`]): The folder.
        todo (`Sequence[Unit]`): What all processes have to do.
        samples ([`SampleSet`]): All samples, those done before included.
        enabled (`bool`): Whether this process shows it.
    """

    def __init__(self, store: PredictionStore, todo: Sequence[Unit], samples: SampleSet, enabled: bool) -> None:
        self.store, self.enabled, self.looked = store, enabled, time.monotonic()
        self.waiting = {(unit.kind, store.path(unit).name): len(unit.indices) for unit in todo}
        total = sum(len(unit.indices) for unit in samples.units)
        self.bar = tqdm(
            total=total,
            initial=total - sum(self.waiting.values()),
            desc=samples.protocol.name,
            unit="expr",
            disable=not enabled,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def count(self, unit: Unit) -> None:
        """Count a video of this process, and now and then those of the others."""
        self.bar.update(self.waiting.pop((unit.kind, self.store.path(unit).name), 0))
        if time.monotonic() - self.looked > LOOK_SECONDS:
            self.look()

    def look(self) -> None:
        """Count all files that are there now."""
        if not self.enabled:
            return
        names = {kind: self.store.names(kind) for kind in {kind for kind, _ in self.waiting}}
        for kind, name in [key for key in self.waiting if key[1] in names[key[0]]]:
            self.bar.update(self.waiting.pop((kind, name)))
        self.looked = time.monotonic()

    def wait(self) -> None:
        """Go on counting until the other processes are done as well."""
        while self.enabled and self.waiting:
            self.look()
            if self.waiting:
                time.sleep(0.2)


# --- one video -------------------------------------------------------------------------------------------------------
def predict_unit(
    unit: Unit,
    rows: Sequence[Mapping[str, Any]],
    model: "VirstForVideoSegmentation",
    processor: "VirstProcessor",
    options: RunOptions,
) -> dict[str, dict[str, Any]]:
    """Predict everything that is asked about one video, which is encoded once.

    Args:
        unit ([`Unit`]): The video.
        rows (`Sequence[dict]`): Its records.
        model ([`VirstForVideoSegmentation`]): In evaluation mode.
        processor ([`VirstProcessor`]): Its processor.
        options ([`RunOptions`]): How to run it.

    Returns:
        `dict`: For each expression id its `expression` and `masks` with `scores`, or `answer`, or `error` where the
        sample failed.
    """
    results = {row["expression_id"]: {"expression": row["expression"]} for row in rows}
    try:
        video = _encode(unit, rows, model, processor, options)
    except SAMPLE_ERRORS as error:
        for entry in results.values():
            entry["error"] = _message(error)
        _free_memory()
        return results
    for start in range(0, len(rows), options.batch_expressions):
        chunk = rows[start : start + options.batch_expressions]
        for row, result in zip(chunk, _try_chunk(chunk, video, model, processor, options), strict=True):
            results[row["expression_id"]].update(result)
    return results


@dataclass
class _EncodedVideo:
    """A video that expressions are asked of."""

    kind: str
    features: "list[VirstVideoFeatures]"
    num_vlm_frames: torch.Tensor
    original_sizes: torch.Tensor


def _encode(
    unit: Unit,
    rows: Sequence[Mapping[str, Any]],
    model: "VirstForVideoSegmentation",
    processor: "VirstProcessor",
    options: RunOptions,
) -> _EncodedVideo:
    inputs: BatchFeature = processor(videos=open_frames(rows[0]))
    if unit.kind == ANSWERS:
        with torch.no_grad():
            features = model.encode_video(inputs["pixel_values_videos"], inputs["num_vlm_frames"])
    else:
        # One pass over the frames is all there is: then features need not be kept beyond their frame.
        several = len(rows) > options.batch_expressions
        keep = several and int(inputs["num_frames"].sum()) <= MAX_KEPT_FRAMES
        with torch.no_grad():
            features = model.encode_video(**inputs, keep_frames=keep)
    return _EncodedVideo(unit.kind, features, inputs["num_vlm_frames"], inputs["original_sizes"])


def _try_chunk(
    rows: Sequence[Mapping[str, Any]],
    video: _EncodedVideo,
    model: "VirstForVideoSegmentation",
    processor: "VirstProcessor",
    options: RunOptions,
) -> list[dict[str, Any]]:
    """Results of some expressions. Where they fail together, each is tried alone: only those at fault get an error."""
    try:
        if video.kind == ANSWERS:
            return _answer(rows, video, model, processor, options)
        return _segment(rows, video, model, processor, options)
    except SAMPLE_ERRORS as error:
        message = _message(error)
    _free_memory()
    if len(rows) == 1:
        return [{"error": message}]
    return [_try_chunk([row], video, model, processor, options)[0] for row in rows]


def _segment(
    rows: Sequence[Mapping[str, Any]],
    video: _EncodedVideo,
    model: "VirstForVideoSegmentation",
    processor: "VirstProcessor",
    options: RunOptions,
) -> list[dict[str, Any]]:
    prompts = processor(text=[row["expression"] for row in rows], num_vlm_frames=video.num_vlm_frames)
    outputs = model.segment(
        features=video.features, original_sizes=video.original_sizes, tracking=options.tracking, **prompts
    )
    height, width = (int(n) for n in video.original_sizes[0])
    results = []
    for logits, scores in zip(outputs.mask_logits, outputs.object_scores, strict=True):
        if not bool(scores.isfinite().all()) or bool(logits.isnan().any()):
            results.append({"error": "The model gave scores that are no numbers; try --dtype float32."})
            continue
        masks = [check_rle(encode_rle(mask)) for mask in iter_masks(logits, scores, (height, width))]
        results.append({"masks": masks, "scores": [round(float(score), 4) for score in scores]})
    return results


def _answer(
    rows: Sequence[Mapping[str, Any]],
    video: _EncodedVideo,
    model: "VirstForVideoSegmentation",
    processor: "VirstProcessor",
    options: RunOptions,
) -> list[dict[str, Any]]:
    questions = [row["expression"] for row in rows]
    prompts = processor(text=questions, num_vlm_frames=video.num_vlm_frames, task="ask")
    tokens = model.generate(
        features=video.features, **prompts, max_new_tokens=options.max_new_tokens, do_sample=False, num_beams=1
    )
    return [{"answer": text.strip()} for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def _message(error: BaseException) -> str:
    """One line for the report."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _free_memory() -> None:
    """After an error: tensors of the failed try may hang in its traceback until they are collected."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
