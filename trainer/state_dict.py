"""State dicts: read without running anything that a file may hold, compared with a network, and loaded into it."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from trainer.failure import DataError
from trainer.store import NotFound, Store
from trainer.weights import SHOWN, WRAPPED, Contents, Fit, refuse_misfit

StateDict = dict[str, Tensor]

LONGEST_REASON = 200  # characters of what torch says of a file
_FOREIGN = re.compile(r"(?:GLOBAL|global|class) ([\w.]+\.[\w.]+)")  # what torch's reader refuses to call


def read_weights(store: Store, file: str, fingerprint: str | None) -> StateDict:
    """The state dict `weights/<file>`, a torch file read with `weights_only` or safetensors. Raises DataError."""
    try:
        data = store.get(f"weights/{file}")
    except NotFound as error:
        raise DataError(
            f"model.weights: {store.uri} has no weights/{file}",
            hint="`grid weights import` puts it there; `grid doctor GRID` gives the whole command",
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if fingerprint is not None and found != fingerprint:
        raise DataError(
            f"model.weights: weights/{file} has SHA-256 {found}, the spec expects {fingerprint}",
            hint="the file changed since the run was planned: plan again, or put the old file back",
        )
    return parse_state(data, file)


def parse_state(source: bytes | Path, file: str) -> StateDict:
    """The state dict in these bytes or in this file on disk, which is mapped where its form allows.

    Raises DataError when it is none, or has a tensor with a number that is not finite.
    """
    try:
        state = _parsed(source, file)
    except Exception as error:  # both readers raise errors of many kinds on a file that is none of theirs
        raise DataError(
            f"model.weights: weights/{file} is no state dict: {_reason(error)}",
            hint="expected what torch.save(model.state_dict(), file) writes, or safetensors",
        ) from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        holds = (
            type(state).__name__ if not isinstance(state, dict) else f"names {', '.join(map(str, list(state)[:SHOWN]))}"
        )
        raise DataError(
            f"model.weights: weights/{file} holds {holds if state else 'nothing'}, expected names with tensors",
            hint="save the network's state dict alone: torch.save(model.state_dict(), file)",
        )
    if wild := [name for name, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise DataError(
            f"model.weights: weights/{file} has numbers that are not finite in {', '.join(wild[:SHOWN])}",
            hint="the training that it comes from diverged, or the file is damaged: use another",
        )
    return state


def _parsed(source: bytes | Path, file: str) -> object:
    if file.endswith(".safetensors"):
        if isinstance(source, Path):
            return safetensors.torch.load_file(source)
        return safetensors.torch.load(source)
    if isinstance(source, bytes):
        return torch.load(io.BytesIO(source), map_location="cpu", weights_only=True)
    with source.open("rb") as opened:
        is_zip = opened.read(2) == b"PK"  # torch's older form cannot be mapped
    return torch.load(source, map_location="cpu", weights_only=True, mmap=is_zip)


def _reason(error: Exception) -> str:
    if foreign := _FOREIGN.search(str(error)):
        return f"it holds Python objects ({foreign[1]}), which are never loaded: they could run any code"
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:LONGEST_REASON]}"


def contents_of(state: StateDict) -> Contents:
    """What the state dict holds."""
    return Contents(
        num_tensors=len(state),
        num_numbers=sum(value.numel() for value in state.values()),
        dtypes=tuple(sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})),
        wrapped=all(name.startswith(WRAPPED) for name in state),
    )


def compare(module: nn.Module, head: str, state: StateDict, architecture: str) -> Fit:
    """How `state` fits everything of the network but the layer `head`."""
    own = {name: value for name, value in module.state_dict().items() if not within(name, head)}
    # what a network keeps out of its own state dict no file can fill
    hidden = [
        name
        for name, _ in module.named_parameters(remove_duplicate=False)
        if name not in own and not within(name, head)
    ]
    given = _taken(module, head, state)
    misshapen = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    last = state.get(f"{head}.weight")
    return Fit(
        architecture=architecture,
        head=head,
        num_outputs=None if last is None or not last.dim() else last.shape[0],
        num_loaded=sum(name in own for name in given),
        left_out=tuple(name for name in state if name not in given and not within(name, head)),
        missing=(*(name for name in own if name not in given and not _may_lack(module, name)), *hidden),
        unexpected=tuple(name for name in given if name not in own),
        misshapen=tuple(misshapen),
    )


def _taken(module: nn.Module, head: str, state: StateDict) -> StateDict:
    """What of `state` is meant for the network: all but the head, and auxiliary heads that it is built without.

    torchvision's files have the latter for networks that are built without them here.
    """
    own = module.state_dict().keys()
    return {
        name: value
        for name, value in state.items()
        if not within(name, head) and (name in own or not name.lower().startswith("aux"))
    }


def _may_lack(module: nn.Module, name: str) -> bool:
    """Whether a file does without it: files older than torch 0.4.1 have no counters of batches.

    Such a counter matters only where a batch-norm has no momentum and averages over all batches it has seen.
    """
    owner, _, last = name.rpartition(".")
    return last == "num_batches_tracked" and getattr(module.get_submodule(owner), "momentum", None) is not None


def load_weights(module: nn.Module, head: str, state: StateDict, file: str, architecture: str) -> None:
    """Load `state` into everything but the head, and see that it is there.

    Raises DataError that lists what is missing or does not fit, or what the network did not take as it is.
    """
    refuse_misfit(compare(module, head, state, architecture), file)
    given = _taken(module, head, state)
    module.load_state_dict(given, strict=False)
    loaded = module.state_dict()
    # a network of one's own may load otherwise than torch does: then it would train from something else
    if other := [name for name, value in given.items() if not torch.equal(loaded[name], value.to(loaded[name].dtype))]:
        raise DataError(
            f"model.weights: {architecture} did not take {', '.join(other[:SHOWN])} of weights/{file} as they are",
            hint="its load_state_dict changes what it is given: expected a network that loads as torch does",
        )


def within(name: str, prefix: str) -> bool:
    """Whether `name` is of the module `prefix`, or of one inside it."""
    return name == prefix or name.startswith(f"{prefix}.")
