"""`virst data`: what it prints, its exit codes, and the contact sheet."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import virst_hf.data
from virst_hf.cli import data
from virst_hf.cli import main as main_module
from virst_hf.data import CATALOG, builder_class, load
from virst_hf.data.preview import contact_sheet, pick_rows, write_preview
from virst_hf.errors import DataError
from virst_hf.rendering import VideoWriter, expression_color
from virst_hf.rle import encode_rle

ROOT = Path(__file__).parent.parent
HEIGHT, WIDTH = 24, 32


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(main_module.COMMANDS, "data", data)


def virst(*arguments: object) -> int:
    """Run the command; a usage error is an exit, too."""
    try:
        return main_module.main(["data", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def mevis(tmp_path: Path) -> Path:
    """Eight videos of three frames; the object of each is at the left, and absent in the last frame."""
    root = tmp_path / "mevis"
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[4:20, 2:14] = True
    videos = {}
    for index in range(8):
        name = f"{index:012d}"
        (root / "train" / "JPEGImages" / name).mkdir(parents=True)
        for t in range(3):
            image = Image.new("RGB", (WIDTH, HEIGHT), (20 * index, 60 * t, 80))
            image.save(root / "train" / "JPEGImages" / name / f"{t:05d}.jpg", quality=95)
        expressions = {
            "0": {"exp": f"object {index}", "obj_id": [0], "anno_id": [index]},
            "1": {"exp": "nothing like this", "obj_id": [], "anno_id": []},
        }
        videos[name] = {"expressions": expressions, "frames": ["00000", "00001", "00002"]}
    masks = {str(index): [encode_rle(mask), encode_rle(mask), None] for index in range(8)}
    (root / "train" / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (root / "train" / "mask_dict.json").write_text(json.dumps(masks))
    return root


# --- list ------------------------------------------------------------------------------------------------------------
def available() -> list[str]:
    folder = Path(virst_hf.data.__file__).parent
    return [name for name, entry in CATALOG.items() if (folder / f"{entry.module}.py").is_file()]


def test_list_names_every_set_with_licence_and_origin(capsys):
    assert virst("list") == 0
    printed = capsys.readouterr().out
    for name, entry in CATALOG.items():
        assert f"\n{name}\n  {entry.title}\n" in f"\n{printed}"
        assert entry.licence in printed and entry.where in printed
    assert "train, valid_u, valid" in printed and "v1, v2" in printed


@pytest.mark.parametrize("name", available())
def test_list_of_one_set_shows_its_tree_and_options(name, capsys):
    assert virst("list", name) == 0
    printed = capsys.readouterr().out
    for line in builder_class(name).TREE.splitlines():
        assert line.strip() in printed
    assert "follow_links = False" in printed and "data_files" not in printed


# --- doctor ----------------------------------------------------------------------------------------------------------
def test_doctor_of_a_clean_set(mevis, capsys):
    assert virst("doctor", "mevis", "--root", mevis) == 0
    assert "8 videos or images, 16 expressions: nothing to complain about." in capsys.readouterr().out
    assert virst("doctor", "mevis", "--root", mevis, "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def damage(mevis: Path) -> None:
    masks = json.loads((mevis / "train" / "mask_dict.json").read_text())
    masks["3"].pop()
    masks["5"] = [None] * 3
    (mevis / "train" / "mask_dict.json").write_text(json.dumps(masks))


def test_doctor_prints_a_table_with_what_to_do(mevis, capsys):
    damage(mevis)
    assert virst("doctor", "mevis", "--root", mevis, "--split", "train") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["CHECK", "ITEM", "FOUND"]
    assert lines[1].split()[:4] == ["mask_count", "000000000003,", "annotation", "3"]
    assert lines[2].split()[:2] == ["empty_mask", "000000000005/0"]
    assert "WHAT TO DO" in lines and "take both from one release" in "".join(lines)
    assert lines[-1].endswith("2 findings.")


def test_doctor_prints_json_and_nothing_else(mevis, capsys):
    damage(mevis)
    assert virst("doctor", "mevis", "--root", mevis, "--json") == 1
    findings = json.loads(capsys.readouterr().out)
    assert [sorted(finding) for finding in findings] == [["check", "item", "message"]] * 2
    assert [finding["check"] for finding in findings] == ["mask_count", "empty_mask"]
    assert virst("doctor", "mevis", "--root", mevis, "--json", "--limit", "4") == 1
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_a_long_table_is_cut(mevis, capsys, monkeypatch):
    monkeypatch.setattr(data, "SHOWN", 3)
    (mevis / "train" / "mask_dict.json").write_text("{}")
    assert virst("doctor", "mevis", "--root", mevis) == 1
    printed = capsys.readouterr().out
    assert printed.count("\nunknown_id") == 5 and "5 more (--json lists all)" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor", "mevis", "--root", "absent"),
        ("doctor", "mevis", "--root", "absent", "--json"),
        ("doctor", "nothing", "--root", "."),
        ("doctor", "mevis", "--root", "mevis", "--split", "valid_u"),
        ("doctor", "mevis", "--root", "mevis", "--config", "v9"),
        ("doctor", "mevis", "--root", "mevis", "--option", "colour=red"),
        ("doctor", "mevis", "--root", "mevis", "--option", "colour"),
        ("doctor", "mevis", "--root", "mevis", "--limit", "0"),
        ("doctor", "mevis"),
        ("list", "nothing"),
        ("preview", "mevis", "--root", "mevis", "--output", "a.mp4"),
        ("preview", "mevis", "--root", "absent", "--output", "a.jpg"),
        ("publish", "mevis", "--root", "mevis"),
        ("publish", "mevis", "--root", "mevis", "--output", "a", "--repo", "b/c"),
        ("publish", "mevis", "--root", "mevis", "--output", "mevis"),
        ("publish", "mevis", "--root", "mevis", "--repo", "a b"),
        (),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_code_2(arguments, mevis, capsys, monkeypatch):
    monkeypatch.chdir(mevis.parent)
    assert virst(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1


def test_options_reach_the_set(mevis, capsys):
    (mevis.parent / "linked").mkdir()
    images = mevis / "train" / "JPEGImages"
    images.rename(mevis.parent / "linked" / "JPEGImages")
    images.symlink_to(mevis.parent / "linked" / "JPEGImages")
    assert virst("doctor", "mevis", "--root", mevis, "--json") == 1
    assert {finding["check"] for finding in json.loads(capsys.readouterr().out)} == {"unsafe_path"}
    assert virst("doctor", "mevis", "--root", mevis, "--follow-links") == 0
    assert virst("doctor", "mevis", "--root", mevis, "--option", "follow_links=true") == 0


# --- preview ---------------------------------------------------------------------------------------------------------
def test_preview_draws_the_masks(mevis, tmp_path):
    rows = [row for row in load("mevis", mevis, "train", streaming=True) if row["object_ids"]][:2]
    sheet = contact_sheet(rows, columns=3, tile_width=WIDTH)
    assert sheet.shape[1] == 6 + 3 * (WIDTH + 6) and sheet.dtype == np.uint8
    # A solid outline in two of three frames of each record.
    outline = (sheet == expression_color(0)).all(-1)
    mask = np.zeros((16, 12), dtype=bool)
    mask[[0, -1]], mask[:, [0, -1]] = True, True
    assert outline.sum() == 2 * 2 * mask.sum()
    assert not outline[:, 6 + 2 * (WIDTH + 6) :].any()


def test_preview_of_a_seed_is_the_same_and_of_another_is_not(mevis):
    builder = builder_class("mevis")(data_dir=mevis)
    picked = [[row["video_id"] for row in pick_rows(builder, "train", 5, seed)] for seed in (0, 0, 1)]
    assert picked[0] == picked[1] != picked[2]
    assert len(set(picked[0])) == 5
    assert len(pick_rows(builder, "train", 12)) == 12 and len(pick_rows(builder, "train", 99)) == 16
    with pytest.raises(DataError, match="at least 1"):
        pick_rows(builder, "train", 0)


def test_preview_is_written_whole_or_not_at_all(mevis, tmp_path, capsys):
    output = tmp_path / "sheets" / "mevis.jpg"
    assert virst("preview", "mevis", "--root", mevis, "--output", output, "--count", "2") == 0
    assert f"Wrote {output}" in capsys.readouterr().out
    before = output.read_bytes()
    with Image.open(output) as image:
        assert image.width == 6 + 5 * 246 and image.format == "JPEG"
    damage(mevis)
    assert virst("preview", "mevis", "--root", mevis, "--output", output, "--count", "16") == 2
    assert output.read_bytes() == before and [path.name for path in output.parent.iterdir()] == ["mevis.jpg"]


def test_preview_of_a_video_file_with_a_long_text(tmp_path, clip_maker):
    with VideoWriter(tmp_path / "a.mp4", 32, 48) as writer:
        for frame in clip_maker(num_frames=4, height=32, width=48):
            writer.write(frame)
    items = [{"video": "a.mp4", "expression": "the square that moves to the right " * 30, "answer": "It is red."}]
    (tmp_path / "test.json").write_text(json.dumps(items))
    path = write_preview("own", tmp_path, tmp_path / "sheet.png", count=3)
    with Image.open(path) as image:
        assert image.height < 400


# --- the others ------------------------------------------------------------------------------------------------------
def test_publish(mevis, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert virst("publish", "mevis", "--root", mevis, "--output", tmp_path / "out") == 0
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().out
    assert (tmp_path / "out" / "v1" / "train-00000-of-00001.parquet").is_file()


def test_make_shapes_passes_its_arguments_on(monkeypatch, capsys):
    calls = []
    maker = types.ModuleType("virst_hf.data.shapes_maker")
    maker.make_shapes = lambda *arguments: calls.append(arguments)
    monkeypatch.setitem(sys.modules, "virst_hf.data.shapes_maker", maker)
    monkeypatch.setattr(virst_hf.data, "shapes_maker", maker, raising=False)
    assert virst("make-shapes", "--root", "d", "--split", "test", "--videos", "3", "--seed", "7") == 0
    assert calls == [("d", "test", 3, 7)] and "3 videos" in capsys.readouterr().out


def test_help_takes_nothing_heavy():
    code = (
        "import argparse, sys; from virst_hf.cli import data;"
        "data.add_parser(argparse.ArgumentParser().add_subparsers());"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"
