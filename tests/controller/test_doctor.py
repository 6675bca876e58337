"""Each check tells what it found, and a cure where something is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import import_pictures

from controller import doctor
from controller.doctor import Check
from controller.origins import DATA_SETS, DataOrigin
from controller.plan import LackingWeights
from controller.search import Needs
from trainer.failure import StoreError
from trainer.probe import Answer, TorchAnswer
from trainer.result import Numerics
from trainer.store import FileStore

NUMERICS = Numerics(
    precision="fp32",
    threads=2,
    micro_batch=256,
    memory_format="channels_last",
    compile=False,
    deterministic=True,
    device="cpu",
    device_model="A Processor",
    instruction_set="AVX2",
    torch_version="2.11",
)
ANSWER = Answer(
    recipe=1,
    commit=None,
    python="3.13.5",
    threads=2,
    memory=8 << 30,
    time=1000.0,
    store=None,
    torch=TorchAnswer(version="2.11", torchvision="0.26", numerics=NUMERICS),
)
ON_GPU = {"precision": "bf16", "device": "cuda", "device_model": "A Card", "instruction_set": "9.0"}
CARD = {"cuda": "12.8", "num_gpus": 2, "gpu": "A Card", "gpu_memory": 80 << 30}


def of_torch(**change: object) -> str:
    """What a probe prints, with another answer of torch."""
    return ANSWER.model_copy(update={"torch": ANSWER.torch.model_copy(update=change)}).model_dump_json()


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 10), "wrong"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "note")],
    ids=["too old", "oldest", "newest", "not tested yet"],
)
def test_a_python_is_judged_by_its_version(version: tuple[int, int], state: str) -> None:
    assert doctor.check_python(version, "text").state == state


def test_little_memory_is_told_with_a_cure() -> None:
    check = doctor.check_memory(1 << 30)
    assert (check.state, check.found) == ("note", "1.1 GB may still be taken")
    assert check.cure is not None
    assert doctor.check_memory(16 << 30).state == "ok"


def test_torch_on_a_processor_says_what_auto_means() -> None:
    checks = named(doctor.judge_torch(0, f"warm\n{of_torch()}\n", "", 3.25))
    assert checks["torch"].found == "2.11 with torchvision 0.26, loaded in 3.2 s"
    assert checks["device"].found.startswith("A Processor, 2 threads, AVX2")
    assert checks["precision"].found.startswith("auto means fp32")


def test_a_gpu_is_told_with_its_memory() -> None:
    text = of_torch(**CARD, numerics=NUMERICS.model_copy(update=ON_GPU))
    checks = named(doctor.judge_torch(0, text, "", 1))
    assert checks["device"].found == "A Card, 85.9 GB, compute capability 9.0, and 1 more"
    assert checks["precision"].found == "auto means bf16 here"


def test_a_gpu_that_cannot_compute_is_wrong() -> None:
    checks = named(doctor.judge_torch(0, of_torch(**CARD, numerics=None, error="no kernel image"), "", 1))
    assert checks["torch"].state == "ok"
    assert (checks["device"].state, checks["device"].found) == ("wrong", "A Card cannot compute: no kernel image")


@pytest.mark.parametrize(
    ("exit_code", "out", "err"),
    [
        pytest.param(1, "", "Traceback\nModuleNotFoundError: No module named 'torch'\n", id="no answer"),
        pytest.param(
            0, of_torch(version=None, error="ModuleNotFoundError: No module named 'torch'"), "", id="an answer"
        ),
    ],
)
def test_a_torch_that_does_not_load_is_wrong_and_says_why(exit_code: int, out: str, err: str) -> None:
    [check] = doctor.judge_torch(exit_code, out, err, 1)
    assert check.state == "wrong"
    assert "No module named 'torch'" in check.found
    assert check.cure is not None


def test_a_folder_as_a_store_passes_every_check_and_is_left_empty(file_store: FileStore) -> None:
    checks = list(doctor.check_store(file_store))
    assert [check.name for check in checks] == ["store", "store's clock", "conditional writes"]
    assert {check.state for check in checks} == {"ok"}
    assert list(file_store.list("")) == []


class Forgetful(FileStore):
    """A store that gives back other bytes than it was given."""

    def get(self, key: str) -> bytes:
        return super().get(key)[1:]


class Locked(FileStore):
    """A store that takes nothing."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        raise StoreError(f"{key}: access denied", hint="ask for rights")


class Naive(FileStore):
    """A store like a server without conditional writes."""

    def is_conditional(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("kind", "name", "state"),
    [
        pytest.param(Forgetful, "store", "wrong", id="other bytes"),
        pytest.param(Locked, "store", "wrong", id="no right to write"),
        pytest.param(Naive, "conditional writes", "note", id="no conditional writes"),
    ],
)
def test_what_is_wrong_with_a_store_is_told_with_a_cure(
    tmp_path: Path, kind: Callable[[Path], FileStore], name: str, state: str
) -> None:
    check = named(list(doctor.check_store(kind(tmp_path / "store"))))[name]
    assert check.state == state
    assert check.cure


@pytest.mark.parametrize(
    ("stamp", "state", "text"),
    [
        (1001.0, "ok", "agree"),
        (1100.0, "wrong", "90 s ahead of"),
        (900.0, "wrong", "100 s behind"),
        (997.0, "ok", "agree"),
    ],
    ids=["between", "ahead", "behind", "a little behind"],
)
def test_clocks_that_differ_are_told(stamp: float, state: str, text: str) -> None:
    skew = doctor.skew_seconds(stamp, 1000.0, 1010.0)
    check = doctor.judge_clock("clock", skew, "the store's clock", "this machine's", "leases")
    assert check.state == state
    assert text in check.found


def test_the_cache_tells_its_room_and_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRID_CACHE", str(tmp_path / "new" / "cache"))
    monkeypatch.setenv("GRID_CACHE_BYTES", "3000000000")
    [check] = doctor.check_cache()
    assert check.state in ("ok", "note")
    assert f"{tmp_path}/new/cache: 0 B of decoded images, at most 3.0 GB; " in check.found
    (tmp_path / "new" / "cache" / "images").mkdir(parents=True)
    (tmp_path / "new" / "cache" / "images" / "birds.rgb").write_bytes(b"x" * 8192)
    assert "8.2 kB of decoded images" in next(doctor.check_cache()).found


def test_a_data_set_that_a_grid_wants_and_the_store_lacks_is_wrong(file_store: FileStore) -> None:
    [check] = doctor.check_data_sets(file_store, ["cats"])
    assert (check.name, check.state) == ("data set cats", "wrong")
    assert "grid data import cats" in str(check.cure)


def test_a_data_set_that_published_figures_are_not_of_is_worth_knowing(
    file_store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATA_SETS, "pictures", DataOrigin("every-third", ("class2",), (4, 4, 4)))
    import_pictures(file_store, tmp_path / "pictures", per_class=6)
    [asked] = doctor.check_data_sets(file_store, ["pictures"], ["pictures"])
    assert asked.state == "note"
    assert "`grid data import pictures FOLDER --split every-third --exclude class2 --replace`" in asked.found
    [unasked] = doctor.check_data_sets(file_store, ["pictures"])
    assert unasked.state == "ok"


def test_an_empty_store_is_worth_knowing_and_not_wrong(file_store: FileStore) -> None:
    assert [check.state for check in doctor.check_data_sets(file_store)] == ["note"]


def test_weights_are_looked_up_in_the_store(file_store: FileStore) -> None:
    content = b"PK\x03\x04 and so on"
    digits = hashlib.sha256(content).hexdigest()
    named = (f"net-{digits[:8]}.pth", "net-00000000.pth", "net.pth")
    for name in named:
        file_store.put(f"weights/{name}", content)
    file_store.put("weights/junk.pth", b"<!DOCTYPE html>")
    missing = "alexnet-owt-7be5be79.pth"
    homes = {missing: LackingWeights(missing, "", None, ("default/default", "lr/0.1"), 2)}
    checks = list(doctor.check_weights(file_store, [*named, missing, missing, "junk.pth"], homes))
    assert [check.state for check in checks] == ["ok", "wrong", "ok", "wrong", "wrong"]
    assert checks[0].found == f"in the store, SHA-256 begins with {digits[:8]}, as the name says"
    assert "expected one that begins with 00000000" in checks[1].found
    assert checks[2].found == f"in the store, SHA-256 {digits[:12]}…"
    assert checks[3].found.endswith("2 runs start from it: default/default, lr/0.1")
    assert checks[3].cure == f"`grid weights import https://download.pytorch.org/models/{missing}` puts it there"
    assert "begins with b'<!DOCTYPE html>', expected what torch.save writes" in checks[4].found


def test_networks_are_looked_up_in_their_source() -> None:
    needs = Needs((), (), ("networks:usual", "networks:unusual", "no_such:network"), ("resnet18", "resnet81"))
    checks = named(list(doctor.check_architectures(needs)))
    assert {name: check.state for name, check in checks.items()} == {
        "network resnet18": "ok",
        "network resnet81": "wrong",
        "network networks:usual": "ok",
        "network networks:unusual": "wrong",
        "network no_such:network": "wrong",
    }
    assert checks["network networks:unusual"].cure == "did you mean 'networks:usual'?"


def test_an_error_that_ends_a_check_is_told_as_a_check() -> None:
    def broken() -> list[Check]:
        raise StoreError("gone", hint="look for it")

    assert list(doctor.guarded("data sets", broken)) == [Check("data sets", "wrong", "gone", "look for it")]
