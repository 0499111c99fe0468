"""Type checkers see what is promised to who writes a task."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "checker",
    [["mypy", "--strict", "--follow-imports=silent"], ["pyright", "--pythonpath", sys.executable]],
    ids=["mypy", "pyright"],
)
def test_type_checkers_know_the_parameters_and_the_result_of_a_task(checker: list[str]):
    done = subprocess.run(
        [sys.executable, "-m", *checker, str(HERE / "tasks.py")], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
