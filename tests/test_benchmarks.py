"""The benchmark scripts run, and count what they say they count."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_shared_features(tmp_path):
    script, result = ROOT / "benchmarks" / "shared_features.py", tmp_path / "result.json"
    command = [sys.executable, str(script), "--frames", "3", "--expressions", "1", "2", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    rows = json.loads(result.read_text())["rows"]
    assert [row["frames_encoded_together"] for row in rows] == [3, 3]
    assert [row["frames_encoded_one_by_one"] for row in rows] == [3, 6]
