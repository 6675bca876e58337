"""State dicts are read without running anything, and loaded whole or not at all: no run starts from other weights."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from trainer.failure import DataError
from trainer.model import Network, build_network
from trainer.spec import ModelSpec
from trainer.state_dict import StateDict, compare, contents_of, parse_state
from trainer.store import Store, open_store

FACTORY = f"{__name__}:small"


def small(num_classes: int, momentum: float | None = 0.1) -> nn.Module:
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(4, num_classes))


def averaging(num_classes: int) -> nn.Module:
    return small(num_classes, momentum=None)


def only_a_head(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))


class HeadFirst(nn.Module):
    """Names its last layer before a layer of its body."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(5, num_classes)
        self.body = nn.Linear(12, 5)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.body(images_BCHW.flatten(1)))
        return logits_BK


class Forgetful(nn.Sequential):
    """Loads what it is given, and puts something else in its place."""

    def load_state_dict(self, state_dict: object, strict: bool = True, assign: bool = False) -> object:  # type: ignore[override]  # as wide as a user's may be
        nn.init.zeros_(self[0].weight)


def forgetful(num_classes: int) -> nn.Module:
    return Forgetful(*small(num_classes).children())


class Secretive(nn.Sequential):
    """Keeps a parameter out of its state dict."""

    def state_dict(self, *positional: object, **named: object) -> StateDict:  # type: ignore[override]  # likewise
        state: StateDict = super().state_dict(*positional, **named)  # type: ignore[misc, arg-type]
        return {name: value for name, value in state.items() if name != "0.weight"}


def secretive(num_classes: int) -> nn.Module:
    return Secretive(*small(num_classes).children())


class Command:
    """What a pickle runs that is loaded with trust."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, (str(self.made),)  # type: ignore[return-value]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


def build(store: Store, num_classes: int = 3, seed: int = 0, **spec: object) -> Network:
    return build_network(ModelSpec.model_validate({"architecture": FACTORY, **spec}), num_classes, seed, store)


def saved(state: object, name: str = "net.pth", *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    if name.endswith(".safetensors"):
        assert isinstance(state, dict)
        return safetensors.torch.save(state)
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def put(store: Store, state: object, name: str = "net.pth") -> str:
    data = saved(state, name)
    store.put(f"weights/{name}", data)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("on_disk", [True, False], ids=["file", "bytes"])
@pytest.mark.parametrize(
    ("name", "zipped"), [("net.pth", True), ("net.pt", False), ("net.safetensors", True)], ids=["zip", "older", "safe"]
)
def test_a_state_dict_is_read_in_each_of_its_forms(tmp_path: Path, name: str, zipped: bool, on_disk: bool) -> None:
    state = small(3).state_dict()
    data = saved(state, name, zipped=zipped)
    (tmp_path / "file").write_bytes(data)
    read = parse_state(tmp_path / "file" if on_disk else data, name)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)
    assert contents_of(read).num_numbers == sum(value.numel() for value in state.values())
    assert contents_of(read).dtypes == ("float32", "int64")


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"not weights", lambda _: b"\x80\x04cos\nsystem\n."],
    ids=["truncated", "empty", "text", "pickle"],
)
def test_a_file_that_is_no_state_dict_is_refused(name: str, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DataError, match=f"weights/{name} is no state dict"):
        parse_state(damage(saved(small(3).state_dict(), name)), name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, zipped: bool) -> None:
    made = tmp_path / "made"
    data = saved({"weight": torch.zeros(1), "more": Command(made)}, zipped=zipped)
    with pytest.raises(DataError, match=r"it holds Python objects \(\w+\.mkdir\), which are never loaded"):
        parse_state(data, "net.pth")
    assert not made.exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        pytest.param(
            {"model": small(3).state_dict(), "epoch": 1}, "holds names model, epoch, expected names with", id="a"
        ),
        pytest.param({}, "holds nothing", id="empty"),
        pytest.param([torch.zeros(1)], "holds list", id="list"),
        pytest.param({"a": torch.tensor([1.0, torch.nan])}, "not finite in a", id="nan"),
    ],
)
def test_what_is_more_or_less_than_a_state_dict_is_refused(state: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_state(saved(state), "net.pth")


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_weights_of_another_number_of_classes_fill_all_but_the_head(store: Store, name: str) -> None:
    trained = build(store, 9, 1)
    fingerprint = put(store, trained.module.state_dict(), name)
    network = build(store, 5, 2, weights=name, weights_fingerprint=fingerprint)
    own, theirs, drawn = (
        network.module.state_dict(),
        trained.module.state_dict(),
        build(store, 5, 2).module.state_dict(),
    )
    assert all(torch.equal(own[key], theirs[key]) for key in own if not key.startswith(network.head))
    assert own["4.weight"].shape[0] == 5
    assert torch.equal(own["4.weight"], drawn["4.weight"])


def test_the_head_is_a_new_one_even_where_the_files_own_would_fit(store: Store) -> None:
    trained = build(store, 5, 1)
    put(store, trained.module.state_dict())
    network = build(store, 5, 2, weights="net.pth")
    assert not torch.equal(network.module.state_dict()["4.weight"], trained.module.state_dict()["4.weight"])


@pytest.mark.parametrize("num_classes", [4, 5], ids=["narrower", "as-wide-as-the-body"])
def test_a_layer_of_the_body_as_wide_as_the_head_is_not_taken_for_it(store: Store, num_classes: int) -> None:
    trained = HeadFirst(5)
    put(store, trained.state_dict())
    network = build(store, num_classes, architecture=f"{__name__}:HeadFirst", weights="net.pth")
    assert network.head == "head"
    assert torch.equal(network.module.state_dict()["body.weight"], trained.body.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.weight"), "missing 0.weight"),
        (lambda state: state.pop("1.running_mean"), "missing 1.running_mean"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda state: state.update({"0.bias": torch.zeros(2)}), "0.bias (2,) instead of (4,)"),
        (lambda state: state.update({"0.bias": torch.full((4,), torch.inf)}), "not finite in 0.bias"),
    ],
    ids=["missing", "missing-statistics", "unexpected", "shape", "infinite"],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    store: Store, change: Callable[[StateDict], object], message: str
) -> None:
    state = dict(build(store).module.state_dict())
    change(state)
    put(store, state)
    with pytest.raises(DataError) as caught:
        build(store, weights="net.pth")
    assert message in str(caught.value)


def test_a_counter_of_batches_may_be_missing_only_where_it_does_not_matter(store: Store) -> None:
    state = dict(build(store).module.state_dict())
    del state["1.num_batches_tracked"]
    put(store, state)
    assert build(store, weights="net.pth").num_parameters
    with pytest.raises(DataError, match=r"missing 1\.num_batches_tracked"):
        build(store, architecture=f"{__name__}:averaging", weights="net.pth")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        pytest.param("only_a_head", "would take nothing from weights/net.pth", id="nothing-but-the-head"),
        pytest.param("forgetful", "did not take 0.weight", id="loads-something-else"),
        pytest.param("secretive", "missing 0.weight", id="hides-a-parameter"),
    ],
)
def test_a_network_that_would_start_from_other_weights_is_refused(store: Store, factory: str, message: str) -> None:
    own = {"only_a_head": only_a_head, "forgetful": small, "secretive": secretive}[factory](3)
    put(store, dict(own.state_dict()))
    with pytest.raises(DataError) as caught:
        build(store, architecture=f"{__name__}:{factory}", weights="net.pth")
    assert message in str(caught.value)


def test_half_precision_fills_the_network_in_its_own(store: Store) -> None:
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in small(3).state_dict().items()
    }
    put(store, state)
    weight: Tensor = build(store, weights="net.pth").module.state_dict()["0.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["0.weight"].float())


def test_heads_that_the_network_is_built_without_are_left_out(store: Store) -> None:
    module = small(3)
    fit = compare(module, "4", {**module.state_dict(), "aux1.weight": torch.zeros(1)}, "small")
    assert fit.fits
    assert fit.left_out == ("aux1.weight",)
    assert (fit.num_loaded, fit.num_outputs) == (7, 3)


def test_weights_that_changed_since_the_plan_are_refused(store: Store) -> None:
    put(store, {"a": torch.zeros(1)})
    with pytest.raises(DataError, match="the spec expects 0000"):
        build(store, weights="net.pth", weights_fingerprint="0" * 64)


def test_missing_weights_name_the_command_that_brings_them(store: Store) -> None:
    with pytest.raises(DataError, match=r"has no weights/none\.pth\nhint: `grid weights import`"):
        build(store, weights="none.pth")
