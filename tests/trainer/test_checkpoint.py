"""A run's checkpoints: who writes the pointer, and who finds that another did."""

from __future__ import annotations

import pytest
import torch

from trainer.checkpoint import CheckpointStore, Progress, checkpoint_key, snapshot
from trainer.failure import Stopped
from trainer.lease import Lease
from trainer.stop import StopSignal
from trainer.store import Store


def test_a_pointer_that_another_attempt_writes_right_after_the_first_one_is_not_written_over(
    file_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = file_store.create

    def beside(key: str, data: bytes) -> str:
        version = create(key, data)
        file_store.put(key, b"another's")
        return version

    monkeypatch.setattr(file_store, "create", beside)
    lease = Lease(file_store, "run", StopSignal())
    checkpoints = CheckpointStore(file_store, "run", lease)
    tensors = {"weight": torch.zeros(1)}
    checkpoints.write(Progress(step=1), snapshot(1, tensors, {}), None, None)
    with pytest.raises(Stopped, match="another attempt wrote its checkpoint"):
        checkpoints.write(Progress(step=2), snapshot(2, tensors, {}), None, None)
    assert lease.lost
    assert file_store.get(checkpoint_key("run")) == b"another's"
