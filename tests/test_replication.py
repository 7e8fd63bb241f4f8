"""The page of the small replication is what its script makes of the result files, no more and no less."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "examples" / "tiny" / "results"
TYPES = ("attribute", "motion", "relation", "plural", "reasoning", "no_target")


@pytest.fixture(autouse=True)
def recipe_on_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "tiny"))


def row(name: str, score: float, **facts: object) -> dict:
    scores = {"J": score - 1, "F": score + 1, "J&F": score, "per_type": dict.fromkeys(TYPES, score)}
    speed = {"frames_a_second": 12.4, "peak_memory_mb": 600.2, "threads": 2}
    test = {"test_videos": 7, "test_seed": 5, "no_target_accuracy": 0.875}
    return {"row": name, **scores, **speed, **test, **facts}


def test_the_page_in_docs_is_that_of_the_results():
    from replication_page import PAGE, page, read

    assert PAGE.read_text(encoding="utf-8") == page(read(RESULTS))


def test_every_row_is_there_once_and_says_what_it_measured():
    from replication import CHAINS, VARIANTS
    from replication_page import CHAIN_ROWS, STAGE_ROWS, VARIANT_ROWS, read

    made = {f"{name}.{stage}" for name, chain in CHAINS.items() for stage, _ in chain.stages} | set(VARIANTS)
    shown = {name for name, _, _ in (*STAGE_ROWS, *CHAIN_ROWS, *VARIANT_ROWS)}
    assert shown <= made
    for name, found in read(RESULTS).items():
        assert name in made
        assert found["J&F"] == pytest.approx((found["J"] + found["F"]) / 2)
        assert set(found["per_type"]) == set(TYPES)


def test_the_numbers_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from replication_page import main

    steps = {"alignment": 3, "few_image": 4, "propagation": 5}
    rows = [
        row("alpha_2", 80.04),
        row("three_stages.few_image", 60.0, share=0.5, steps={"alignment": 3, "few_image": 4}),
        row("three_stages.propagation", 70.0, share=0.5, steps=steps),
    ]
    for number, content in enumerate(rows):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    monkeypatch.setattr(
        sys, "argv", ["replication_page.py", "--results", str(tmp_path), "--page", str(tmp_path / "page.md")]
    )
    main()
    text = (tmp_path / "page.md").read_text()
    assert "7 videos of it (seed 5)" in text
    assert "50 % of the steps of the recipe: 3 in `alignment`, 4 in `few_image`, 5 in `propagation`" in text
    assert "| after stage 2 | 59.0 | 61.0 | 60.0 | 64.4 |" in text
    assert "| alpha 2, single mask (virst-tiny) | 79.0 | 81.0 | 80.0 | 12 | 600 MB |" in text
    assert "88 %" in text
    # A row without a file is not there, rather than a line of zeros.
    assert "after stage 1" not in text and "alpha 4 |" not in text


def test_chains_take_the_same_number_of_steps():
    from replication import CHAINS
    from train_tiny import STAGES

    for chain in CHAINS.values():
        assert sorted(each for _, budget in chain.stages for each in budget) == sorted(STAGES)
