"""What the README promises first: the main job, by the command line, with two real guests."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

ROOT = Path(__file__).parents[2]


def test_the_demo_does_the_main_job(image_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
                          env={**os.environ, "KVMNET_IMAGE_DIR": str(image_folder)})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "exactly as before the demo" in done.stdout
