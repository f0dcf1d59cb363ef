"""What the tests of faults share: a system that answers as told."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("preload.c")

Answers = Callable[..., dict[str, str]]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile what stands between the program and the system."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt install gcc libc6-dev")
    built = tmp_path_factory.mktemp("preload") / "answers.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, SOURCE, "-ldl"], check=True)
    return built


@pytest.fixture
def answers(library: Path) -> Answers:
    """Return the environment in which the system answers so: `answers(fsync=errno.ENOSPC)`."""

    def environment(**given: int | str) -> dict[str, str]:
        said = {f"FAULT_{name.upper()}": str(value) for name, value in given.items()}
        return {"LD_PRELOAD": str(library), **said}

    return environment
