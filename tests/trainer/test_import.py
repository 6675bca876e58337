from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import encoded, pixels, png_of_size, some_images, write_tree
from PIL import Image

from trainer.dataset import PARTS, DatasetIndex, dataset_lock, load_index
from trainer.failure import DataError, SpecError
from trainer.importing import Imported, import_dataset
from trainer.shards import header
from trainer.splits import stratified
from trainer.store import FileStore, Store, open_store

ANIMALS = some_images({"ant": 10, "Bee": 11, "cat": 5, "dog": 7})


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = open_store(f"file://{tmp_path}/store")
    assert isinstance(store, FileStore)
    return store


def content(store: Store) -> dict[str, bytes]:
    return {entry.key: store.get(entry.key) for entry in store.list("datasets/")}


def paths(index: DatasetIndex, part: str) -> list[str]:
    return [entry.path for name in PARTS if name == part for entry in index.entries(name)]


def imported(folder: Path, files: dict[str, bytes], store: Store, **rules: Any) -> Imported:
    return import_dataset(write_tree(folder, files), "animals", store, **rules)


# The same input


def test_a_second_import_gives_the_same_bytes_whatever_the_number_of_threads(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", ANIMALS)
    contents = []
    for num_threads in (1, 5):
        store = open_store(f"file://{tmp_path}/store{num_threads}")
        import_dataset(tree, "animals", store, num_threads=num_threads, shard_bytes=8 << 10)
        contents.append(content(store))
    assert contents[0] == contents[1]
    assert len(contents[0]) > 5


def test_importing_the_same_again_changes_nothing_and_says_so(tmp_path: Path, store: FileStore) -> None:
    first = imported(tmp_path / "tree", ANIMALS, store)
    before = list(store.list("datasets/"))
    second = import_dataset(tmp_path / "tree", "animals", store, shard_bytes=8 << 10)
    assert (first.outcome, second.outcome) == ("new", "unchanged")
    assert second.index == first.index
    assert list(store.list("datasets/")) == before


def test_neither_name_nor_shards_are_part_of_the_fingerprint_but_parts_are(tmp_path: Path, store: FileStore) -> None:
    tree = write_tree(tmp_path / "tree", ANIMALS)
    first = import_dataset(tree, "first", store).index
    assert import_dataset(tree, "second", store, shard_bytes=8 << 10).index.fingerprint == first.fingerprint
    assert import_dataset(tree, "third", store, seed=1).index.fingerprint != first.fingerprint


def test_other_images_under_a_taken_name_are_refused_and_leave_no_trace(tmp_path: Path, store: FileStore) -> None:
    imported(tmp_path / "tree", ANIMALS, store)
    before = content(store)
    with pytest.raises(DataError, match=r"has another one of this name: fingerprint \w{12}, 33 images; .* 34 images"):
        imported(tmp_path / "other", ANIMALS | {"ant/new.png": encoded(1)}, store)
    assert content(store) == before


def test_replacing_leaves_only_the_new_shards(tmp_path: Path, store: FileStore) -> None:
    imported(tmp_path / "tree", ANIMALS, store)
    second = imported(tmp_path / "other", ANIMALS | {"ant/new.png": encoded(1)}, store, replace=True)
    assert second.outcome == "replaced"
    assert load_index(store, "animals") == second.index
    assert {key.split("/")[-1] for key in content(store)} == {"index.json", *(s.name for s in second.index.shards)}


def test_a_lost_shard_is_put_back_by_importing_again(tmp_path: Path, store: FileStore) -> None:
    first = imported(tmp_path / "tree", ANIMALS, store)
    before = content(store)
    store.delete(first.index.shard_key(0))
    again = import_dataset(tmp_path / "tree", "animals", store)
    assert (again.outcome, again.num_mended) == ("mended", 1)
    assert content(store) == before


def test_a_damaged_shard_is_mended_by_replacing(tmp_path: Path, store: FileStore) -> None:
    first = imported(tmp_path / "tree", ANIMALS, store)
    before = content(store)
    key = first.index.shard_key(0)
    store.put(key, bytes(len(before[key])))  # of the same size
    again = import_dataset(tmp_path / "tree", "animals", store, replace=True)
    assert (again.outcome, again.num_mended) == ("mended", 1)
    assert content(store) == before


def test_replacing_a_data_set_by_itself_changes_nothing(tmp_path: Path, store: FileStore) -> None:
    imported(tmp_path / "tree", ANIMALS, store)
    before = list(store.list("datasets/"))
    assert import_dataset(tmp_path / "tree", "animals", store, replace=True).outcome == "unchanged"
    assert list(store.list("datasets/")) == before


def test_a_damaged_index_is_replaced_only_on_request(tmp_path: Path, store: FileStore) -> None:
    tree = write_tree(tmp_path / "tree", ANIMALS)
    store.put("datasets/animals/index.json", b"{}")
    with pytest.raises(DataError, match="is not an index"):
        import_dataset(tree, "animals", store)
    assert import_dataset(tree, "animals", store, replace=True).outcome == "replaced"
    assert load_index(store, "animals").num_images() == 33


def test_a_shard_is_a_webdataset_that_tar_reads(tmp_path: Path, store: FileStore) -> None:
    index = imported(tmp_path / "tree", ANIMALS, store).index
    entries = index.entries("test")
    with tarfile.open(fileobj=io.BytesIO(store.get(index.shard_key(entries[0].shard)))) as shard:
        members = {member.name: shard.extractfile(member) for member in shard}
    found = {name: stream.read() for name, stream in members.items() if stream is not None}
    assert list(found)[:4] == ["00000000.png", "00000000.cls", "00000001.png", "00000001.cls"]
    assert [found[f"{number:08d}.png"] for number in range(len(entries))] == [ANIMALS[entry.path] for entry in entries]
    assert [int(found[f"{number:08d}.cls"]) for number in range(len(entries))] == [entry.label for entry in entries]


def test_a_shard_header_is_the_one_that_tarfile_writes() -> None:
    member = tarfile.TarInfo("00000012.jpg")
    member.size = 123456
    assert header("00000012.jpg", 123456) == member.tobuf(tarfile.USTAR_FORMAT)


def test_progress_counts_every_image(tmp_path: Path, store: FileStore) -> None:
    told: list[tuple[str, int, int | None, int]] = []
    imported(tmp_path / "tree", ANIMALS, store, progress=lambda *step: told.append(step))
    assert [step[1] for step in told if step[0] == "import"] == list(range(1, 34))
    assert told[-1] == ("import", 33, 33, sum(map(len, ANIMALS.values())))


def test_an_interrupted_import_leaves_no_trace(tmp_path: Path, store: FileStore) -> None:
    def interrupt(step: str, done: int, total: int | None, num_bytes: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imported(tmp_path / "tree", ANIMALS, store, shard_bytes=8 << 10, progress=interrupt)
    assert content(store) == {}


def test_two_imports_of_one_name_do_not_run_at_once(tmp_path: Path, store: FileStore) -> None:
    lock = dataset_lock(store, "animals")
    assert lock.acquire()
    with pytest.raises(DataError, match="data set 'animals': another process is importing it"):
        imported(tmp_path / "tree", ANIMALS, store)
    lock.release()
    assert import_dataset(tmp_path / "tree", "animals", store).outcome == "new"


def test_a_failed_import_leaves_the_shards_that_an_index_names(tmp_path: Path, store: FileStore) -> None:
    first = imported(tmp_path / "tree", ANIMALS, store, split="every-third").index
    whole = content(store)
    for shard in range(len(first.shards)):  # as if another host put them while the import below ran
        store.delete(first.shard_key(shard))

    def interrupt(step: str, done: int, total: int | None, num_bytes: int) -> None:
        if step != "list" and done == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_dataset(tmp_path / "tree", "animals", store, split="every-third", progress=interrupt)
    kept = content(store)
    assert kept.keys() < whole.keys()
    assert len(kept) == 3  # the index, and two shards that were put back before the interruption


# Parts


def test_every_third_path_is_test_counting_what_is_then_left_out(tmp_path: Path, store: FileStore) -> None:
    files = ANIMALS | {"bat/tmp": b"no image", "bat/b.png": encoded(1)}
    index = imported(tmp_path / "tree", files, store, split="every-third", exclude=["bat"]).index
    in_order = sorted(files, key=lambda path: path.lower().split("/"))
    assert paths(index, "test") == [path for path in in_order[::3] if not path.startswith("bat/")]
    assert index.classes == ("ant", "Bee", "cat", "dog")
    assert index.excluded == ("bat",)
    assert index.skipped == ()


def test_validation_is_half_of_each_class_and_odd_leftovers_alternate(tmp_path: Path, store: FileStore) -> None:
    files = some_images({"a": 3, "b": 4, "c": 5, "d": 1, "e": 7})
    lists = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    lists["train"].write_text("\n".join(path for path in files if path != "e/06.png"))
    lists["test"].write_text("e/06.png\n")
    index = imported(tmp_path / "tree", files, store, split="lists", lists=lists).index
    assert index.class_counts("train") == (2, 2, 2, 1, 3)
    assert index.class_counts("validation") == (1, 2, 3, 0, 3)


def test_an_image_keeps_its_place_when_others_of_its_class_are_renamed() -> None:
    names = [f"a/{number}" for number in range(100)]
    before = stratified([names], 0.5, 0, "validation")
    after = stratified([[*names[:-1], "a/new"]], 0.5, 0, "validation")
    assert len(before) == len(after) == 50
    assert len(before ^ after) <= 3


def test_another_seed_draws_other_images() -> None:
    names = [f"a/{number}" for number in range(100)]
    assert stratified([names], 0.5, 0, "test") != stratified([names], 0.5, 1, "test")
    assert stratified([names], 0.5, 0, "test") != stratified([names], 0.5, 0, "validation")


def test_a_fraction_of_each_class_is_test(tmp_path: Path, store: FileStore) -> None:
    files = some_images({"a": 10, "b": 20, "c": 5})
    index = imported(tmp_path / "tree", files, store, split="fraction", fraction=0.4, validation_fraction=0.25).index
    assert index.class_counts("test") == (4, 8, 2)
    assert index.class_counts("validation") == (1, 3, 1)
    assert (index.split.test_fraction, index.split.validation_fraction) == (0.4, 0.25)


def test_lists_name_the_images_of_each_part_and_the_rest_is_told(tmp_path: Path, store: FileStore) -> None:
    lists = {}
    for part, lines in (
        ("train", "\ufeffant/00.png\r\nBee/00.png\r\ncat/00.png\r\n"),
        ("validation", "./ant/01.png\n\ndog/01.png"),
        ("test", "dog/02.png\n"),
    ):
        lists[part] = tmp_path / f"{part}.txt"
        lists[part].write_bytes(lines.encode())
    index = imported(tmp_path / "tree", ANIMALS, store, split="lists", lists=lists).index
    assert {part: paths(index, part) for part in PARTS} == {
        "train": ["ant/00.png", "Bee/00.png", "cat/00.png"],
        "validation": ["ant/01.png", "dog/01.png"],
        "test": ["dog/02.png"],
    }
    assert len(index.skipped) == 27
    assert ("ant/02.png", "in no list") in index.skipped
    assert index.split.validation_fraction is None
    assert "no image for training in 1: dog" in index.notes


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("ant/3.png\n", r"train\.txt:1: no file 'ant/3.png', the nearest is 'ant/03.png'"),
        ("ant/00.png\nant/00.png\n", r"train\.txt:2: 'ant/00.png' is named a second time, first by .*train\.txt:1"),
        ("ant/01.png\n", r"is named a second time, first by .*train\.txt:1"),
    ],
    ids=["no such file", "twice in a list", "in two lists"],
)
def test_a_list_that_cannot_be_followed_is_an_error_with_its_line(
    train: str, message: str, tmp_path: Path, store: FileStore
) -> None:
    lists = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    lists["train"].write_text(train)
    lists["test"].write_text("ant/01.png\n")
    with pytest.raises(DataError, match=message):
        imported(tmp_path / "tree", ANIMALS, store, split="lists", lists=lists)


def test_part_folders_give_the_parts(tmp_path: Path, store: FileStore) -> None:
    files = {
        f"set/{part}/{path}": encoded(number * 3 + offset)
        for number, path in enumerate(("ant/1.png", "bee/1.png"))
        for offset, part in enumerate(("train", "val", "test"))
    }
    index = imported(tmp_path / "tree", files | {"set/labels.csv": b"x"}, store, split="folders").index
    assert index.classes == ("ant", "bee")
    assert paths(index, "validation") == ["val/ant/1.png", "val/bee/1.png"]
    assert paths(index, "test") == ["test/ant/1.png", "test/bee/1.png"]
    assert index.split.validation_fraction is None


def test_without_a_validation_folder_training_images_are_halved(tmp_path: Path, store: FileStore) -> None:
    files = {f"train/{path}": data for path, data in some_images({"ant": 4, "bee": 6}).items()}
    files |= {"test/ant/1.png": encoded(1), "docs/ant/1.png": encoded(2)}
    index = imported(tmp_path / "tree", files, store, split="folders").index
    assert (index.class_counts("train"), index.class_counts("validation")) == ((2, 3), (2, 3))
    assert index.skipped == (("docs/ant/1.png", "in none of the folders train/, test/ and val/"),)


def test_without_a_training_folder_the_split_by_folders_is_an_error(tmp_path: Path, store: FileStore) -> None:
    with pytest.raises(DataError, match=r"split folders: no images in a folder train/"):
        imported(tmp_path / "tree", {"test/ant/1.png": encoded(1)}, store, split="folders")


def test_a_tree_without_part_folders_is_told_what_they_are_and_what_there_is(tmp_path: Path, store: FileStore) -> None:
    with pytest.raises(DataError, match=r"split folders: no folders train/ and test/ in .*tree, expected") as caught:
        imported(tmp_path / "tree", ANIMALS, store, split="folders")
    assert "hint: there is Bee, ant, cat, dog; choose another --split" in str(caught.value)


# The tree


def test_the_root_is_found_below_single_folders(tmp_path: Path, store: FileStore) -> None:
    files = {f"caltech101/101_ObjectCategories/{path}": data for path, data in ANIMALS.items()}
    index = imported(tmp_path / "tree", files | {"README.txt": b"hello"}, store).index
    assert index.classes == ("ant", "Bee", "cat", "dog")
    assert index.skipped == (("README.txt", "outside the root folder caltech101/101_ObjectCategories"),)


def test_a_root_can_be_named(tmp_path: Path, store: FileStore) -> None:
    files = {f"a/b/{path}": data for path, data in ANIMALS.items()} | {"a/c/x/1.png": encoded(1)}
    index = imported(tmp_path / "tree", files, store, root="a/b").index
    assert index.num_images() == 33
    assert index.skipped == (("a/c/x/1.png", "outside the root folder a/b"),)


def test_images_in_folders_below_a_class_belong_to_it(tmp_path: Path, store: FileStore) -> None:
    files = some_images({"ant": 3, "ant/more": 3, "bee": 2})
    index = imported(tmp_path / "tree", files, store).index
    assert index.classes == ("ant", "bee")
    assert sum(index.class_counts(part)[0] for part in PARTS) == 6


def test_what_file_managers_leave_behind_is_passed_over_and_told(tmp_path: Path, store: FileStore) -> None:
    files = ANIMALS | {"ant/.DS_Store": b"x", "cat/Thumbs.db": b"x", ".cache/a/b.png": b"x", "notes.txt": b"x"}
    index = imported(tmp_path / "tree", files, store, split="every-third").index
    assert index.classes == ("ant", "Bee", "cat", "dog")
    assert [path for path, _ in index.skipped] == [".cache", "ant/.DS_Store", "cat/Thumbs.db", "notes.txt"]
    assert "in no class folder" in {reason for _, reason in index.skipped}


@pytest.mark.parametrize(
    ("files", "rules", "message", "hint"),
    [
        ({"a.png": b""}, {}, "no class folders in it", "there are no folders in it"),
        ({"x/y.tar.gz": b""}, {"root": "."}, "no image left|cannot import", ""),
        ({"inner.tar.gz": b""}, {}, "no class folders in it", "it holds inner.tar.gz: unpack it"),
        ({"cat/1.png": b"", "Cat/1.png": b""}, {}, "class folders that differ only by case: Cat and cat", "rename"),
        ({"cat/1.png": b""}, {"exclude": ["cta"]}, "exclude: no class folder 'cta'", "the nearest is 'cat'"),
        ({"cat/1.png": b""}, {"exclude": ["cat"]}, "every class is excluded: cat", "--exclude"),
        ({"cat/1.png": b""}, {"root": "dog"}, "no folder 'dog' for a root", "there is cat"),
        ({"cat/1.png": encoded(1), "dog/": b""}, {}, "class dog: its folder has no file", "--exclude"),
    ],
    ids=[
        "no folders", "a nested archive as a class", "a nested archive", "classes that differ by case",
        "an unknown exclusion", "nothing left", "an unknown root", "an empty class",
    ],
)  # fmt: skip
def test_a_tree_that_is_no_data_set_is_an_error_with_a_hint(
    files: dict[str, bytes], rules: dict[str, Any], message: str, hint: str, tmp_path: Path, store: FileStore
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        imported(tmp_path / "tree", files, store, **rules)
    assert hint in str(caught.value)
    assert content(store) == {}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"split": "random"}, "split: got 'random', expected one of every-third, lists, folders, fraction"),
        ({"fraction": 1.0}, r"fraction: got 1\.0, expected a number between 0 and 1"),
        ({"on_bad": "ignore"}, "on_bad: got 'ignore', expected refuse or skip"),
        ({"split": "lists"}, "split lists: got 0 lists of paths, expected lists for train and test"),
        ({"lists": {"train": Path("x")}}, "split fraction: got 1 lists of paths, expected none"),
    ],
    ids=["split", "fraction", "on_bad", "lists missing", "lists not wanted"],
)
def test_impossible_rules_are_refused(rules: dict[str, Any], message: str, tmp_path: Path, store: FileStore) -> None:
    with pytest.raises(SpecError, match=message):
        imported(tmp_path / "tree", ANIMALS, store, **rules)


def test_a_name_that_could_leave_its_folder_is_refused(tmp_path: Path, store: FileStore) -> None:
    with pytest.raises(SpecError, match=r"name: got '\.\./x', expected letters"):
        import_dataset(tmp_path, "../x", store)


# Bad files

TRUNCATED = encoded(Image.fromarray(pixels(1, 99, 99)), "JPEG")[:2000]
BAD = [
    pytest.param(b"", "empty file: 0 bytes", id="zero bytes"),
    pytest.param(b"text", "not an image, or its header is broken: starts with b'text'", id="not an image"),
    pytest.param(TRUNCATED, "broken image: image file is truncated", id="truncated"),
    pytest.param(png_of_size(20_000, 20_000), "decompression bomb: ", id="decompression bomb"),
    pytest.param(encoded(Image.new("F", (4, 4)), "TIFF"), "TIFF with 32 bits a pixel", id="32-bit"),
]


@pytest.mark.parametrize(("data", "reason"), BAD)
def test_a_bad_file_is_refused_by_path_and_nothing_is_written(
    data: bytes, reason: str, tmp_path: Path, store: FileStore
) -> None:
    with pytest.raises(DataError, match=f"cannot import: cat/bad.png: {reason}") as caught:
        imported(tmp_path / "tree", ANIMALS | {"cat/bad.png": data}, store, shard_bytes=8 << 10)
    assert "--on-bad skip" in str(caught.value)
    assert content(store) == {}


@pytest.mark.parametrize(("data", "reason"), BAD)
def test_a_bad_file_is_skipped_on_request_and_the_index_says_so(
    data: bytes, reason: str, tmp_path: Path, store: FileStore
) -> None:
    index = imported(tmp_path / "tree", ANIMALS | {"cat/bad.png": data}, store, on_bad="skip").index
    assert index.num_images() == 33
    assert [path for path, _ in index.skipped] == ["cat/bad.png"]
    assert index.skipped[0][1].startswith(reason)


def test_twenty_bad_files_are_named_and_the_rest_counted(tmp_path: Path, store: FileStore) -> None:
    files = ANIMALS | {f"cat/bad{number:02d}.png": b"" for number in range(25)}
    with pytest.raises(DataError) as caught:
        imported(tmp_path / "tree", files, store)
    lines = caught.value.message.splitlines()
    assert lines[0] == "cannot import: 25 faults:"
    assert len(lines) == 22
    assert lines[-1] == "  and 5 more"


def test_skipping_moves_no_other_image_to_another_part(tmp_path: Path, store: FileStore) -> None:
    whole = imported(tmp_path / "whole", ANIMALS | {"Bee/bad.png": encoded(9)}, store, split="every-third").index
    other = open_store(f"file://{tmp_path}/other")
    files = ANIMALS | {"Bee/bad.png": b""}
    index = imported(tmp_path / "tree", files, other, split="every-third", on_bad="skip").index
    for part in PARTS:
        assert paths(index, part) == [path for path in paths(whole, part) if path != "Bee/bad.png"]


def test_a_class_of_bad_files_alone_is_an_error_even_when_they_are_skipped(tmp_path: Path, store: FileStore) -> None:
    with pytest.raises(DataError, match="cannot import: class eel: no image left"):
        imported(tmp_path / "tree", ANIMALS | {"eel/1.png": b""}, store, on_bad="skip")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to("/nowhere/at/all"), "a link to nowhere"),
        (lambda path: path.symlink_to(path.parent.parent), "a link to a folder that holds it"),
        (os.mkfifo, "neither a file nor a folder"),
        (lambda path: path.with_name("b\xff.png".encode("latin-1").decode(errors="surrogateescape")).touch(), "UTF-8"),
        (lambda path: path.with_name("a\nb.png").touch(), r"'cat/a\\nb.png': its name has a line break"),
    ],
    ids=["a dead link", "a link that goes round", "a pipe", "a name that is no UTF-8", "a name of two lines"],
)
def test_what_is_no_ordinary_file_is_told_and_never_opened(
    make: Callable[[Path], object], reason: str, tmp_path: Path, store: FileStore
) -> None:
    write_tree(tmp_path / "tree", ANIMALS)
    make(tmp_path / "tree" / "cat" / "odd.png")
    with pytest.raises(DataError, match=reason):
        import_dataset(tmp_path / "tree", "animals", store)
    index = import_dataset(tmp_path / "tree", "animals", store, on_bad="skip").index
    assert (index.num_images(), len(index.skipped)) == (33, 1)


def test_links_to_images_are_followed_inside_the_source(tmp_path: Path, store: FileStore) -> None:
    write_tree(tmp_path / "all", ANIMALS)
    (tmp_path / "all" / "eel").symlink_to("ant")
    (tmp_path / "all" / "fox").mkdir()
    (tmp_path / "all" / "fox" / "1.png").symlink_to(tmp_path / "all" / "Bee" / "01.png")
    (tmp_path / "link").symlink_to("all")
    index = import_dataset(tmp_path / "link", "animals", store).index
    found = [path for path in index.images.path if path.startswith(("eel/", "fox/"))]
    ants = [path for path in ANIMALS if path.startswith("ant/")]
    assert sorted(found) == sorted([*(path.replace("ant/", "eel/") for path in ants), "fox/1.png"])


@pytest.mark.parametrize(
    "target",
    ["../../other/ant", "../../other/ant/01.png", "/", "../.."],
    ids=["a folder", "a file", "the whole machine", "a folder that holds the source"],
)
def test_links_out_of_the_source_are_told_by_path_and_not_followed(
    target: str, tmp_path: Path, store: FileStore
) -> None:
    write_tree(tmp_path / "tree", ANIMALS)
    write_tree(tmp_path / "other", {"ant/01.png": encoded(1)})
    (tmp_path / "tree" / "ant" / "out").symlink_to(target)
    with pytest.raises(DataError, match=rf"cannot import: ant/out: a link that leads out of {tmp_path / 'tree'}\n"):
        import_dataset(tmp_path / "tree", "animals", store)
    index = import_dataset(tmp_path / "tree", "animals", store, on_bad="skip").index
    assert (index.num_images(), index.skipped) == (
        len(ANIMALS),
        (("ant/out", f"a link that leads out of {tmp_path / 'tree'}"),),
    )


def test_the_files_of_a_folder_are_counted_while_it_is_listed(tmp_path: Path, store: FileStore) -> None:
    write_tree(tmp_path / "tree", ANIMALS)
    told: list[tuple[str, int]] = []

    def progress(step: str, done: int, total: int | None, num_bytes: int) -> None:
        told.append((step, done))

    import_dataset(tmp_path / "tree", "animals", store, progress=progress)
    listed = [done for step, done in told if step == "list"]
    assert listed == sorted(listed)
    assert listed[-1] == len(ANIMALS)
    assert told[: len(listed)] == [("list", done) for done in listed]


# Names and copies


def test_names_beyond_ascii_are_kept_in_one_unicode_form(tmp_path: Path, store: FileStore) -> None:
    files = ANIMALS | {"Ba\u0308r/zo\u0308o \u718a.png": encoded(1), "Ba\u0308r/2.png": encoded(2)}
    index = imported(tmp_path / "tree", files, store).index
    assert "B\u00e4r" in index.classes
    assert "B\u00e4r/z\u00f6o \u718a.png" in load_index(store, "animals").images.path


def test_one_name_in_two_unicode_forms_is_told(tmp_path: Path, store: FileStore) -> None:
    files = ANIMALS | {"cat/a\u0308.png": encoded(1), "cat/\u00e4.png": encoded(2)}
    with pytest.raises(DataError, match=r"cat/\u00e4.png: another file has the same name in another Unicode form"):
        imported(tmp_path / "tree", files, store)


def test_files_that_differ_only_by_case_are_both_kept_and_told(tmp_path: Path, store: FileStore) -> None:
    index = imported(tmp_path / "tree", ANIMALS | {"cat/a.png": encoded(1), "cat/A.png": encoded(2)}, store).index
    assert index.num_images() == 35
    assert next(note for note in index.notes if "differ only by case" in note).endswith("1: cat/A.png and cat/a.png")


def test_copies_are_counted_and_told_when_they_cross_parts_or_classes(tmp_path: Path, store: FileStore) -> None:
    files = some_images({"a": 3, "b": 3})
    files["a/01.png"] = files["a/00.png"]  # the first of three is test
    files["b/02.png"] = files["a/02.png"]
    index = imported(tmp_path / "tree", files, store, split="every-third").index
    assert index.notes[0] == "2 images are copies, byte for byte, of others"
    assert any(note.startswith("the same image in more than one part: 1: ") for note in index.notes)
    assert any("in more than one class: 1: a/02.png (a) and b/02.png (b)" in note for note in index.notes)


def test_a_data_set_of_one_class_is_told(tmp_path: Path, store: FileStore) -> None:
    index = imported(tmp_path / "tree", some_images({"ant": 6}), store).index
    assert index.notes == ("there is one class only, ant: nothing to tell apart",)


def test_odd_but_readable_images_are_kept_as_they_are(tmp_path: Path, store: FileStore) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = {
        "odd/grey.jpg": encoded(Image.new("L", (8, 6)), "JPEG"),
        "odd/cmyk.jpg": encoded(Image.new("CMYK", (8, 6)), "JPEG"),
        "odd/palette.gif": encoded(Image.new("P", (8, 6)), "GIF"),
        "odd/deep.png": encoded(Image.fromarray(np.zeros((6, 8), np.uint16))),
        "odd/alpha.png": encoded(Image.new("RGBA", (8, 6))),
        "odd/turned.jpg": encoded(Image.new("RGB", (6, 8)), "JPEG", exif=exif),
        "odd/misnamed.jpg": encoded(Image.new("RGB", (8, 6)), "PNG"),
    }
    index = imported(tmp_path / "tree", ANIMALS | odd, store).index
    entries = [entry for part in PARTS for entry in index.entries(part) if entry.path in odd]
    assert {(entry.width, entry.height) for entry in entries} == {(8, 6)}
    for entry in entries:
        shard = store.get(index.shard_key(entry.shard))
        assert shard[entry.offset : entry.offset + entry.size] == odd[entry.path]
