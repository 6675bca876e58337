"""What a run sees in the images of a folder, asked of torch in a child process; as rows of CSV, or as records."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from controller.wording import csv_text
from trainer.answers import Answer, Beginning, Ending
from trainer.failure import DeviceError, ExitCode, GridError

CHILD = ("-m", "trainer.predict")
ENDING_SECONDS = 10.0  # that a child has once it was told to end


def predictions(run: str, folder: Path, store_uri: str, top: int) -> Generator[Beginning | Answer, None, None]:
    """What the trainer's child says, line by line; it ends with this generator.

    Raises what the child raised, and DeviceError where it ended without a word.
    """
    words = [sys.executable, *CHILD, run, str(folder.absolute()), "--store", store_uri, "--top", str(top)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                said = _parsed(line)
                if isinstance(said, Ending):
                    raise _error(said, child.wait())
                yield said
            if exit_code := child.wait():
                raise DeviceError(
                    f"the process that computes ended with {exit_code}; what it said stands above",
                    hint="`grid doctor` says whether torch can be loaded here, and how much memory there is",
                )
        finally:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(ENDING_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()


def _parsed(line: str) -> Beginning | Answer | Ending:
    for kind in (Answer, Beginning, Ending):
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            continue
    raise DeviceError(f"the process that computes said {line[:200]!r}, expected one of its records")


def _error(said: Ending, exit_code: int) -> GridError:
    error = GridError(said.message, hint=said.hint)
    error.exit_code = ExitCode(exit_code)
    return error


def csv_head(top: int) -> list[str]:
    """The names of the columns: file, class and probability, those of further classes with their number, error."""
    further = [name for number in range(2, top + 1) for name in (f"class_{number}", f"probability_{number}")]
    return ["file", "class", "probability", *further, "error"]


def csv_row(answer: Answer, top: int) -> list[str]:
    """An answer's row: as many classes as `top`, empty where there are no more, and why there is none."""
    cells = [csv_text(answer.file)]
    for name, probability in answer.classes[:top]:
        cells += [csv_text(name), f"{probability:.6f}"]
    cells += [""] * (2 * top + 1 - len(cells))
    return [*cells, csv_text(answer.error or "")]


def as_record(answer: Answer) -> dict[str, Any]:
    """An answer for programs: probabilities in full."""
    classes = [{"class": name, "probability": probability} for name, probability in answer.classes]
    return {"file": answer.file, "classes": classes, "error": answer.error}
