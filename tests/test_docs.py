"""README, docs and examples: the links lead somewhere, the Python in them runs, the examples do what they say."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image

import virst_hf
from virst_hf.data import CATALOG

ROOT = Path(__file__).parent.parent
DATA_PAGES = sorted((ROOT / "docs" / "data").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *DATA_PAGES]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", DATA_PAGES, ids=lambda page: page.name)
def test_pages_of_data_sets_show_licence_tree_and_a_row(page: Path):
    text = page.read_text(encoding="utf-8")
    assert re.search(r"\*\*Licence:?\*\*|^## Licence|^\| licence|^Licence:", text, re.MULTILINE | re.IGNORECASE), (
        page.name
    )
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert any('"expression_id"' in block for block in blocks)
    assert any("/" in block and '"expression_id"' not in block for block in blocks)


def test_every_data_set_has_a_page():
    listed = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for name in CATALOG:
        assert re.search(rf"`{re.escape(name)}`.*\]\(data/[a-z0-9-]+\.md\)", listed), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`((?:modules/)?[a-z_]+\.py)`", text):
        assert any((ROOT / folder / name).exists() for folder in ("virst_hf", ".", "examples")), name


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` makes, by the same scripts."""
    folder = tmp_path_factory.mktemp("demo")
    run_example("make_clip", str(folder / "build" / "demo" / "shapes.mp4"))
    return folder


def run_example(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/inference.md"])
def test_python_of_the_pages_runs(page: str, demo: Path, monkeypatch):
    monkeypatch.chdir(demo)
    blocks = [block for block in python_blocks(ROOT / page) if "push_to_hub" not in block and '"a.mp4"' not in block]
    assert len(blocks) >= 1
    exec(compile("\n".join(blocks), page, "exec"), {})


@pytest.mark.slow
def test_examples(demo: Path, tmp_path: Path):
    build = demo / "build" / "demo"
    with av.open(str(build / "shapes.mp4")) as container:
        assert len(list(container.decode(video=0))) == 36
    printed = run_example(
        "segment_video",
        str(build / "shapes.mp4"),
        "the red square",
        str(tmp_path / "out.mp4"),
    )
    assert "out.mp4" in printed
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(list(container.decode(video=0))) == 36
    run_example("contact_sheet", str(tmp_path / "s.jpg"), str(build / "shapes.mp4"), str(tmp_path / "out.mp4"))
    with Image.open(tmp_path / "s.jpg") as sheet:
        assert sheet.size == (4 * 320, 2 * 240)


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 80, path


def test_version_of_setup_is_that_of_the_package(monkeypatch):
    seen: dict[str, object] = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: seen.update(options))
    runpy.run_path(str(ROOT / "setup.py"))
    assert seen["version"] == virst_hf.__version__
    assert "Unreleased" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
