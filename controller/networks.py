"""How large a grid's networks are: read from the store, and asked of torch in a child process where nobody has yet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable

from pydantic import ValidationError

from controller.plan import Sizes
from controller.wording import listed
from trainer.failure import StoreError
from trainer.result import parse_record
from trainer.sizes import Shape, Size
from trainer.store import NotFound, Store

MAX_SHAPES = 200  # of one grid that are looked at: a network takes torch some tenths of a second
CHILD = ("-m", "trainer.measure")
CHILD_SECONDS = 300.0
WHY_LIMIT = 200  # characters


def read_sizes(store: Store, shapes: Iterable[Shape], tell: Callable[[str], None] = lambda _text: None) -> Sizes:
    """The sizes of the networks; those that the store has not are measured, and kept there for the next time.

    Before that takes its seconds, `tell` gets a line that says so. A network that cannot be measured is no error here:
    the trainer tells what is wrong with it. A store that takes no objects is none either: the next plan measures anew.
    """
    found = Sizes()
    missing = []
    for shape in shapes:
        try:
            found.known[shape.key] = parse_record(Size, shape.key, store.get(shape.key))
        except NotFound:
            missing.append(shape)
    for shape in missing[MAX_SHAPES:]:
        found.unknown[shape.key] = f"more than {MAX_SHAPES} networks were not measured yet"
    if asked := missing[:MAX_SHAPES]:
        names = listed(list(dict.fromkeys(shape.model.architecture for shape in asked)))
        tell(f"measuring {names}, once: the store keeps what is found")
        for shape, size in zip(asked, _measured(asked), strict=True):
            if isinstance(size, str):
                found.unknown[shape.key] = size[:WHY_LIMIT]
                continue
            found.known[shape.key] = size
            try:
                store.put(shape.key, size.model_dump_json(indent=2).encode())
            except StoreError:
                continue
    return found


def _measured(shapes: list[Shape]) -> list[Size | str]:
    """Of each shape its size, or why there is none."""
    question = json.dumps([shape.model_dump(mode="json") for shape in shapes])
    try:
        done = subprocess.run(
            [sys.executable, *CHILD],
            input=question,
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=True,
        )
        told = json.loads(done.stdout.splitlines()[-1])  # a factory may print something before
        return [Size.model_validate(each["size"]) if "size" in each else str(each["error"]) for each in told]
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines()
        return [lines[-1] if lines else f"torch ended with {error.returncode}"] * len(shapes)
    except subprocess.TimeoutExpired:
        return [f"torch took longer than {CHILD_SECONDS:.0f} s"] * len(shapes)
    except (OSError, ValueError, IndexError, KeyError, ValidationError) as error:
        return [f"torch did not answer: {error}"] * len(shapes)
