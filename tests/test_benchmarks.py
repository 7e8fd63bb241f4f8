"""The benchmark scripts run, and count what they say they count."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(name: str, *arguments: str) -> str:
    """What a benchmark script printed."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_data_listing():
    printed = run("data_listing.py", "--videos", "4", "--expressions", "8")
    assert printed.count(" 8 rows") == 2


def test_shared_features(tmp_path):
    result = tmp_path / "result.json"
    run("shared_features.py", "--frames", "3", "--expressions", "1", "2", "--json", str(result))
    rows = json.loads(result.read_text())["rows"]
    assert [row["frames_encoded_together"] for row in rows] == [3, 3]
    assert [row["frames_encoded_one_by_one"] for row in rows] == [3, 6]
