"""What ZeRO-3 asks of a mixture is checked before it waits for ever."""

from types import SimpleNamespace

import pytest

from virst_hf.data import Mixture, make_row
from virst_hf.errors import ConfigError
from virst_hf.training import VirstTrainer
from virst_hf.training.same_modules import check_same_modules, frame_counts


def rows(category: str, *counts: int) -> list[dict]:
    fields = {"expression": "it", "category": category, "source": f"my-{category}", "split": "train"}
    named = [{name: [str(t) for t in range(n)] for name in ("frame_names", "frame_paths")} for n in counts]
    return [make_row(video_id=str(i), expression_id="0", **fields, **frames) for i, frames in enumerate(named)]


def mixture(*sets: list[dict], **options) -> Mixture:
    categories = {rows[0]["category"] for rows in sets}
    return Mixture(list(sets), num_draws=4, weights=options.pop("weights", dict.fromkeys(categories, 1)), **options)


@pytest.mark.parametrize(
    "found",
    [
        mixture(rows("rvos", 16, 19), rows("rvos", 17)),  # 16 frames for both views
        mixture(rows("rvos", 40, 90, 1000)),  # 32 of the SAM view, whatever the number for the language model
        mixture(rows("referring_image", 1, 1)),
        mixture(rows("video_qa", 0, 5)),
        mixture(rows("rvos", 40), rows("video_qa", 0), weights={"rvos": 1, "video_qa": 0}),
    ],
)
def test_draws_that_run_the_same_modules(processor, found):
    check_same_modules("training", found, "anchors", processor)


@pytest.mark.parametrize(
    "found, message",
    [
        (mixture(rows("rvos", 16), rows("rvos", 31)), r"T_seg: 16 \(my-rvos/train\), 28 \(my-rvos/train#2\)"),
        (mixture(rows("rvos", 16, 12)), "unlike numbers of frames T_seg: 12 .*at least 32 frames"),
        (mixture(rows("rvos", 7, 7)), "videos of 7 frames .my-rvos/train., which are padded"),
        (mixture(rows("rvos", 1)), "videos of 1 frames"),
        (mixture(rows("referring_image", 1, 12)), "T_seg: 1 .*, 12 "),
        (mixture(rows("rvos", 40), rows("video_qa", 0)), "the categories rvos, video_qa"),
        (mixture(rows("rvos", 40), expressions_per_clip=2), "up to 2 expressions in a draw"),
    ],
)
def test_draws_that_do_not(processor, found, message):
    with pytest.raises(ConfigError, match=f"ZeRO-3 .* the validation .*{message}.*zero2.json"):
        check_same_modules("validation", found, "anchors", processor)


def test_propagation_frames_differ_by_draw(processor):
    with pytest.raises(ConfigError, match="propagation frames"):
        check_same_modules("training", mixture(rows("rvos", 40)), "anchors+propagation", processor)


@pytest.mark.parametrize("which", ["training", "validation"])
def test_the_trainer_looks_at_both_mixtures(processor, which):
    good, bad = mixture(rows("rvos", 40)), mixture(rows("rvos", 16, 40))
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))),
        args=SimpleNamespace(training_stage=SimpleNamespace(supervise="anchors")),
        processing_class=processor,
        train_dataset=bad if which == "training" else good,
        eval_dataset=bad if which == "validation" else good,
    )
    with pytest.raises(ConfigError, match=f"the {which} has clips of unlike numbers"):
        VirstTrainer._fit_deepspeed(trainer)
    trainer.train_dataset, trainer.eval_dataset = good, None
    VirstTrainer._fit_deepspeed(trainer)


def test_frame_counts_of_an_arrow_set(work, work_cache):
    from virst_hf.data import load

    found = load("shapes", work.shapes, "train", config="rvos")
    assert frame_counts(found) == {len(row["frame_names"]) for row in found}
