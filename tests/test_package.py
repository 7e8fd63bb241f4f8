"""The package as a whole: lazy import, Auto classes in every import order, layers, and the wheel."""

import ast
import importlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import virst_hf
from virst_hf._auto import LazyEntries

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "virst_hf"

# A file imports from files above it only. A folder stands for the files in it, which may import one another.
LAYERS = [
    "_auto",
    "_lazy",
    "version",
    "errors",
    "checkpoint_check",
    "configuration_virst",
    "sampling",
    "video_decoders",
    "video_io",
    "video_processing_virst",
    "prompts",
    "rle",
    "rendering",
    "frame_reader",
    "compilation",
    "processing_virst",
    "data",
    "metrics",
    "modules",
    "presets",
    "modeling_outputs",
    "model_card",
    "adapters",
    "modeling_base",
    "objective",
    "video_encoding",
    "streaming",
    "modeling_virst",
    "conversion_tables",
    "conversion_files",
    "conversion",
    "toy_tokenizer",
    "untrained",
    "session",
    "quantization",
    "loading",
    "evaluation",
    "training",
    "cli",
    "__init__",
]


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """Run `code` in a new interpreter that can import the package, and return what it printed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_takes_neither_torch_nor_transformers():
    heavy = run_python(
        "import sys, virst_hf; from virst_hf import VirstError;"
        "print([m for m in ('torch', 'transformers', 'sam2', 'numpy') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_every_exported_name_can_be_imported():
    for name in virst_hf.__all__:
        assert getattr(virst_hf, name) is not None
    assert set(virst_hf.__all__) <= set(dir(virst_hf))
    with pytest.raises(AttributeError, match="no_such_name"):
        virst_hf.no_such_name  # noqa: B018


def test_exports_are_in_the_all_of_their_module():
    for module, names in virst_hf.EXPORTS.items():
        assert set(names) <= set(importlib.import_module(f"virst_hf.{module}").__all__), module


AUTO = "from transformers import AutoConfig, AutoModel, AutoProcessor, AutoVideoProcessor"
# What a user may do before the Auto classes are used.
ORDERS = {
    "package first": f"import virst_hf; {AUTO}",
    "transformers first": f"import transformers, virst_hf; {AUTO}",
    "auto classes first": f"{AUTO}; import virst_hf",
    "configuration first": f"from virst_hf import VirstConfig; {AUTO}",
}
LOAD = """
names = [type(auto.from_pretrained(sys.argv[1])).__name__
         for auto in (AutoProcessor, AutoVideoProcessor, AutoConfig, AutoModel)]
print(*names)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return virst_hf.make_untrained_model(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes(order: str, checkpoint: Path):
    loaded = run_python(f"import sys; {ORDERS[order]}{LOAD}", str(checkpoint))
    assert loaded.split() == ["VirstProcessor", "VirstVideoProcessor", "VirstConfig", "VirstForVideoSegmentation"]


def test_other_models_do_not_load_ours():
    code = (
        "import sys, virst_hf; from transformers import AutoModel, AutoProcessor, BertConfig;"
        "from transformers.models.auto.modeling_auto import MODEL_MAPPING;"
        "print(MODEL_MAPPING[BertConfig].__name__, [m for m in sys.modules if m.startswith('virst_hf.modeling')])"
    )
    assert run_python(code) == "BertModel []"


def test_lazy_entries_are_a_dictionary():
    made = []

    class Config:
        model_type = "virst"

    def make() -> tuple[type, str]:
        made.append(1)
        return Config, "ours"

    entries = LazyEntries({"other": 1}, make)
    assert entries["other"] == 1 and "third" not in entries and not made
    entries["third"] = 3
    assert not made
    assert entries[Config] == "ours" and Config in entries
    assert dict(entries) == {"other": 1, "third": 3, Config: "ours"}
    assert len(LazyEntries({}, make)) == 1 and list(LazyEntries({}, make)) == [Config]
    assert list(LazyEntries({}, make).values()) == ["ours"] and list(LazyEntries({}, make).keys()) == [Config]
    assert list(LazyEntries({}, make).items()) == [(Config, "ours")]
    # A class that the user registered stays.
    entries = LazyEntries({}, make)
    dict.__setitem__(entries, Config, "theirs")
    assert entries[Config] == "theirs"


def layer_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_layers(path: Path) -> set[str]:
    """Layers that a file imports from, also inside functions; what only a type checker reads is left out."""
    package = ("virst_hf", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        found |= {target[1] for target in targets if target[0] == "virst_hf" and len(target) > 1}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_from_files_above_it(path: Path):
    layer = layer_of(path)
    assert layer in LAYERS, f"{path} has no place in the order of files"
    for other in imported_layers(path) - {layer}:
        # `from virst_hf import name` inside the package would hide where the name comes from.
        assert other in LAYERS, f"{path} imports {other} from the package itself"
        assert LAYERS.index(other) < LAYERS.index(layer), f"{path} imports {other}, which is below it"


def test_files_are_short():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package installed from a wheel, away from the source."""
    pytest.importorskip("wheel")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(copy_of_source(folder))]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    wheel = next(folder.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert "virst_hf/py.typed" in names and not [name for name in names if name.startswith(("tests/", "examples/"))]
    target = folder / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, capture_output=True
    )
    return target


def copy_of_source(folder: Path) -> Path:
    """Building writes `build/` and `*.egg-info` beside setup.py: do it in a copy."""
    import shutil

    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "virst_hf", ignore=skip)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    return source


@pytest.mark.slow
def test_wheel_runs_away_from_the_source(installed: Path, tmp_path: Path):
    code = (
        "import sys, virst_hf; assert virst_hf.__file__.startswith(sys.argv[1]), virst_hf.__file__;"
        "from virst_hf.cli.main import main; from virst_hf import make_untrained_model, VirstProcessor;"
        "from importlib.resources import files;"
        "assert 'im_start' in files('virst_hf').joinpath('chat_template.jinja').read_text();"
        "make_untrained_model(sys.argv[2]); processor = VirstProcessor.from_pretrained(sys.argv[2]);"
        "print(processor.chat_template is not None, main(['info', sys.argv[2]]))"
    )
    printed = run_python(code, str(installed), str(tmp_path / "model"), PYTHONPATH=str(installed))
    assert "segmenter" in printed and printed.endswith("True 0")
    scripts = [path.name for path in (installed / "bin").iterdir()]
    assert "virst" in scripts


def test_help_is_quick():
    command = [sys.executable, "-m", "virst_hf.cli.main", "--help"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        times.append(time.perf_counter() - start)
    assert "segment" in done.stdout and min(times) < 0.5, times
