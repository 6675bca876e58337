"""Tensor files are safetensors, hold what the tensors were when they were copied, and use their memory again."""

from __future__ import annotations

import gc
import io

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from trainer.failure import SpecError
from trainer.tensors import NAMES, Regions, copied, parsed, read_memory

COUNT = torch.arange(6).reshape(2, 3)


def files() -> dict[str, dict[str, Tensor]]:
    shared = torch.randn(4, 5)
    return {
        "none": {},
        "scalar": {"step": torch.tensor(3.0)},
        "without numbers": {"none": torch.zeros(0, 3), "one": torch.ones(1)},
        "every type": {str(dtype): (COUNT % 2).to(dtype) for dtype in NAMES},
        "channels last": {"w": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)},
        "views of one storage": {"whole": shared, "row": shared[1], "turned": shared.T},
        "a parameter": {"w": nn.Parameter(torch.randn(3))},
        "a name of many letters": {'größe/"x"': torch.randn(2)},
    }


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("name", files())
def test_safetensors_reads_what_was_copied(name: str) -> None:
    tensors = files()[name]
    file = copied(tensors)
    assert equal(safetensors.torch.load(bytes(file.data)), tensors)
    assert equal(file.tensors, tensors)


@pytest.mark.parametrize("name", files())
def test_what_safetensors_writes_is_read(name: str) -> None:
    tensors = {key: value.detach().clone().contiguous() for key, value in files()[name].items()}
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    assert equal(parsed(read_memory(io.BufferedReader(io.BytesIO(data)), len(data))).tensors, tensors)


def test_equal_tensors_make_equal_bytes() -> None:
    first = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int64)}
    assert copied(first).data == copied({name: first[name] for name in reversed(first)}).data


def test_a_copy_stays_as_it_was() -> None:
    tensor = torch.ones(100)
    file = copied({"a": tensor})
    tensor.zero_()
    assert file.tensors["a"].sum() == 100


def test_a_type_that_the_format_lacks_is_told() -> None:
    with pytest.raises(SpecError, match=r"tensor 'a' has type torch\.complex128") as caught:
        copied({"a": torch.zeros(1, dtype=torch.complex128)})
    assert "float32" in str(caught.value.hint)


def test_a_stream_that_ends_early_gives_what_it_has() -> None:
    assert read_memory(io.BufferedReader(io.BytesIO(b"abc")), 5).tolist() == [97, 98, 99]


def test_memory_is_used_again_only_once_nothing_refers_to_it() -> None:
    regions = Regions()
    first = regions.take(10_000)
    place, view = first.data_ptr(), first[5_000:].view(10, 500)
    del first
    gc.collect()
    second = regions.take(10_000)
    assert second.data_ptr() != place
    view.fill_(7)
    assert not (second == 7).all()
    del view
    gc.collect()
    assert regions.take(9_000).data_ptr() == place


def test_memory_far_too_large_is_left_to_others() -> None:
    regions = Regions()
    place = regions.take(1_000_000).data_ptr()
    small = regions.take(100)
    assert small.data_ptr() != place
    assert regions.take(900_000).data_ptr() == place


@pytest.mark.cuda
def test_a_copy_from_a_gpu_is_made_beside_its_work() -> None:
    tensors = {"a": torch.randn(1000, 1000, device="cuda"), "b": torch.arange(5, device="cuda")}
    expected = {name: value.cpu() for name, value in tensors.items()}
    copied(tensors).data.release()  # the first allocation of pinned memory waits for the device; torch keeps it
    torch.cuda._sleep(1 << 30)  # about half a second
    file = copied(tensors)
    assert not torch.cuda.current_stream().query()
    for value in tensors.values():
        value.zero_()
    assert equal(file.tensors, expected)
    assert equal(safetensors.torch.load(bytes(file.data)), expected)
