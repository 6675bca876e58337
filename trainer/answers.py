"""What `python -m trainer.predict` says on stdout, a record of these a line: the controller reads it without torch."""

from __future__ import annotations

from trainer.result import Record


class Beginning(Record):
    """Before any answer: what computes, and how many images it will look at."""

    device: str  # cpu or cuda
    num_files: int


class Answer(Record):
    """What the network sees in one image, or why nobody could look at it."""

    file: str  # from the folder on, `/` between folders
    classes: tuple[tuple[str, float], ...] = ()  # with their probabilities, the likeliest first
    error: str | None = None


class Ending(Record):
    """Why there is no answer, or no further one."""

    message: str
    hint: str | None = None
