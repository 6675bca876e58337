"""What a file of weights holds and whether it fits a network: `python -m trainer.fitting < question > answer`, JSON.

It is a program of its own because only torch can read the file and build the network, and the controller never loads
it. The network is built on torch's meta device where it can be: nothing is drawn or computed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from trainer.failure import GridError, SpecError
from trainer.model import Network, build_network
from trainer.spec import ModelSpec
from trainer.state_dict import compare, contents_of, parse_state
from trainer.store import FileStore
from trainer.weights import Answer, Question, Trouble

NUM_CLASSES = 1_009  # of the network that is tried: no layer of a common one has so many outputs but the last


def answer(question: Question) -> Answer:
    """What the file holds and how it fits, as far as it can be read and the network can be built."""
    found = Answer()
    try:
        state = parse_state(question.path, question.name)
        found = Answer(contents=contents_of(state))
        if question.model is None:
            return found
        network = _built(question.model)
        fit = compare(network.module, network.head, state, question.model.architecture)
        return found.model_copy(update={"fit": fit})
    except GridError as error:
        trouble = Trouble(exit_code=int(error.exit_code), message=error.message, hint=error.hint)
        return found.model_copy(update={"trouble": trouble})


def _built(model: ModelSpec) -> Network:
    """The network, without numbers where it needs none to be built. Raises SpecError where it cannot be built."""
    nowhere = FileStore(Path.cwd())  # the model names no weights: nothing is read
    try:
        with torch.device("meta"):
            return build_network(model, NUM_CLASSES, 0, nowhere)
    except GridError:
        raise
    except Exception:  # noqa: BLE001 - some networks compute with tensors while they are built, as they like
        pass
    try:
        return build_network(model, NUM_CLASSES, 0, nowhere)
    except GridError:
        raise
    except Exception as error:
        raise SpecError(f"model.architecture: {model.architecture}: {type(error).__name__}: {error}") from error


if __name__ == "__main__":
    sys.stdout.write(f"{answer(Question.model_validate_json(sys.stdin.read())).model_dump_json()}\n")
