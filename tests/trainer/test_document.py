from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.document import (
    MAX_ERRORS,
    Document,
    absence,
    dotted_keys,
    read_document,
    read_file,
    show_path,
    validate,
    write_yaml,
)
from trainer.failure import SpecError
from trainer.spec import ExperimentSpec

BASE = "data: {name: digits}\nmodel: {architecture: alexnet}\n"


def read(text: str) -> Any:
    return read_document(text, "x.yaml").value


def error_of(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        validate(ExperimentSpec, read_document(text, "x.yaml"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100_000),
        ("3.0", 3),
        (".5", 0.5),
        ("-1.", -1),
        ("+7", 7),
        ("1e22", 1e22),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("2024-01-31", "2024-01-31"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("none", "none"),
    ],
)
def test_a_plain_scalar_means_what_it_looks_like(text: str, value: object) -> None:
    got = read(f"key: {text}")["key"]

    assert got == value
    assert type(got) is type(value)


def test_a_key_is_text_however_it_looks() -> None:
    assert read("1: a\nno: b\n") == {"1": "a", "no": "b"}


def test_every_value_has_the_line_of_its_key() -> None:
    document = read_document("a: 1\nb:\n  c:\n    - 1\n    - d: 2\n", "x.yaml")

    assert [document.place(path).line for path in [("a",), ("b", "c"), ("b", "c", 1), ("b", "c", 1, "d")]] == [
        1,
        3,
        5,
        5,
    ]
    assert str(document.place(("b", "c", 0, "absent"))) == "x.yaml:4"


def test_merge_keys_give_values_and_the_mapping_itself_wins() -> None:
    text = "one: &one {a: 1, b: 1}\ntwo: &two {b: 2, c: 2}\nboth:\n  <<: [*one, *two]\n  c: 3\n"

    assert read(text)["both"] == {"a": 1, "b": 1, "c": 3}
    assert read_document(text, "x.yaml").place(("both", "c")).line == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("a: 1\nb: 2\na: 3\n", "x.yaml:3: a: stands twice, first in line 1", id="duplicate key"),
        pytest.param("a:\n  b: {c: 1, c: 2}\n", "x.yaml:2: a.b.c: stands twice", id="duplicate key deeper"),
        pytest.param("a:\n\tb: 1\n", "hint: indent with spaces", id="tab"),
        pytest.param("a: 1\nb: c: d\n", "x.yaml:2: not YAML: mapping values are not allowed", id="colon"),
        pytest.param("a: 'b\n", "hint: a quote was not closed", id="quote"),
        pytest.param("a: [1, 2\nb: 3\n", "hint: a list or mapping in brackets was not closed", id="bracket"),
        pytest.param("a: *b\n", "undefined alias", id="alias"),
        pytest.param("a: 1\n---\nb: 2\n", "hint: remove the line '---'", id="two documents"),
        pytest.param("a: !!python/name:os.system\n", "expected a value without a tag", id="python tag"),
        pytest.param("a: !secret x\n", "got the tag !secret", id="own tag"),
        pytest.param("a: \x01\n", "x.yaml:1: got a character that YAML does not allow", id="control character"),
        pytest.param("? [1]\n: 2\n", "got a list or mapping as a key", id="list as key"),
        pytest.param("a: &a [*a]\n", "got an alias to a value that holds it", id="endless"),
        pytest.param("<<: 3\n", "<<: got no mapping", id="merge of a number"),
        pytest.param(f"a: {'[' * 200}{']' * 200}\n", "levels of values within values", id="deep"),
    ],
)
def test_bad_text_is_told_with_its_line(text: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(text)

    assert told in str(caught.value)
    assert "x.yaml:" in str(caught.value)


def test_aliases_that_multiply_are_refused() -> None:
    names = "abcdefgh"
    lines = [f"a: &a [{', '.join(['x'] * 10)}]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in pairwise(names)]

    with pytest.raises(SpecError, match="do aliases multiply here"):
        read("\n".join(lines))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
    | st.sampled_from(["no", "1e-3", "0x10", "~", "null", "1:30", "=", "<<", "- a", "# b", "2020-01-01"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text("ab: #", max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(PLAIN)
def test_what_is_written_reads_back_and_yaml_1_1_agrees(value: object) -> None:
    text = write_yaml({"key": value})

    assert read(text) == {"key": value}
    assert _tuples(yaml.safe_load(text)) == {"key": value}


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            "optimizer:\n  lrr: 1\n",
            "x.yaml:4: optimizer.lrr: unknown key; got 'lrr'\nhint: did you mean 'lr'?",
            id="unknown key in a union",
        ),
        pytest.param(
            "lr: 1\n", "x.yaml:3: lr: unknown key; got 'lr'\nhint: did you mean 'optimizer.lr'?", id="too high"
        ),
        pytest.param("optimizer: {momentun: 0}\n", "did you mean 'momentum'?", id="default member's key"),
        pytest.param("optimizer: {name: adamw, beta: [0, 0]}\n", "did you mean 'betas'?", id="named member's key"),
        pytest.param(
            "optimizer: {name: adam}\n",
            "x.yaml:3: optimizer.name: got 'adam', expected sgd or adamw\nhint: did you mean 'adamw'?",
            id="unknown member",
        ),
        pytest.param("optimizer: {lr: -0.1}\n", "optimizer.lr: got -0.1, expected a number greater than 0", id="bound"),
        pytest.param("optimizer: {lr: '0.1'}\n", "hint: write 0.1, without quotes", id="number as text"),
        pytest.param("optimizer: {nesterov: no}\n", "got 'no', expected true or false\nhint: write false", id="no"),
        pytest.param(
            "epochs: 1_000\n", "epochs: got '1_000', expected a whole number\nhint: write it plainly: 1000", id="1_000"
        ),
        pytest.param("epochs: 1.5\n", "epochs: got 1.5, expected a whole number", id="fraction"),
        pytest.param("epochs: true\n", "epochs: got true, expected a whole number", id="bool for a number"),
        pytest.param("clip_norm: none\n", "expected a number or null\nhint: write null", id="none for null"),
        pytest.param("clip_norm: .inf\n", "clip_norm: got inf, expected a finite number", id="infinity"),
        pytest.param(
            "precision: fp23\n", "expected auto, fp32, tf32 or bf16\nhint: did you mean 'fp32'?", id="literal"
        ),
        pytest.param("augmentation: repot_1\n", "hint: did you mean 'report_1'?", id="preset"),
        pytest.param("micro_batch: 512\n", "x.yaml:1: micro_batch 512 is larger than batch_size 256", id="across keys"),
        pytest.param("best:\n", "best: got null, expected a mapping", id="empty mapping"),
        pytest.param("optimizer: {name: adamw, betas: [1.5, 0]}\n", "optimizer.betas[0]: got 1.5", id="item of a list"),
    ],
)
def test_a_wrong_value_is_told_with_place_and_cure(text: str, told: str) -> None:
    assert told in error_of(BASE + text)


def test_null_is_no_cure_where_it_is_not_allowed() -> None:
    told = error_of(f"{BASE}epochs: no\n")
    assert "epochs: got 'no', expected a whole number" in told
    assert "null" not in told


def test_a_missing_key_says_what_belongs_there() -> None:
    assert "data.name: missing key; expected data set in the store" in error_of("data: {}\nmodel: {architecture: a}\n")


@pytest.mark.parametrize("freeze", ["3", "true", "{a: b}"])
def test_union_members_are_told_together_and_not_by_pydantics_names(freeze: str) -> None:
    told = error_of(f"data: {{name: digits}}\nmodel: {{architecture: alexnet, freeze: {freeze}}}\n")

    assert told.count("model.freeze: got") == 1
    assert "literal[" not in told
    assert "tuple[" not in told


def test_all_errors_are_told_at_once_in_the_order_of_lines() -> None:
    told = error_of(BASE + "epochs: 0\nbatch_size: 0\nprecision: x\n")

    assert [line.split(": ")[0] for line in told.splitlines() if "got" in line] == ["x.yaml:3", "x.yaml:4", "x.yaml:5"]


def test_very_many_errors_are_cut_short() -> None:
    told = error_of(BASE + "".join(f"key_{number}: 1\n" for number in range(30)))

    assert told.count("unknown key") == MAX_ERRORS
    assert "and 20 more" in told


@pytest.mark.parametrize("text", ["", "3", "- a", "text"])
def test_a_document_that_is_no_mapping_is_refused(text: str) -> None:
    assert "expected keys: data, model" in error_of(text)


@settings(deadline=None)
@given(PLAIN)
def test_any_value_under_any_spec_key_ends_in_a_spec_or_a_spec_error(value: object) -> None:
    for key in ("optimizer", "model", "data", "augmentation", "epochs"):
        document = Document("x", {"data": {"name": "d"}, "model": {"architecture": "a"}, key: value}, {})
        try:
            told = repr(validate(ExperimentSpec, document))
        except SpecError as error:
            told = str(error)
        assert told.startswith(("x: ", "ExperimentSpec("))


def test_dotted_keys_reach_into_every_member_of_a_union() -> None:
    keys = dotted_keys(ExperimentSpec)

    assert {
        "optimizer",
        "optimizer.momentum",
        "optimizer.betas",
        "schedule.gamma",
        "augmentation.perspective.p",
    } <= set(keys)


def test_a_path_is_shown_as_a_person_writes_it() -> None:
    assert show_path(("stages", 1, "vary", "optimizer.lr", 0)) == "stages[1].vary.optimizer.lr[0]"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="lists in brackets"),
        pytest.param("{a: " * 100_000, id="mappings in braces"),
        pytest.param("- " * 100_000, id="lists on one line"),
        pytest.param("\n".join(" " * depth + "a:" for depth in range(3_000)), id="mappings by indent"),
        pytest.param("[" * 500, id="not deep enough to end the process"),
    ],
)
def test_values_nested_without_end_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"deep\.yaml.*(levels|not YAML)"):
        read_document(text, "deep.yaml")


def test_many_brackets_in_a_text_are_no_depth() -> None:
    assert read_document(f"a: '{'[' * 5_000}'", "x").value == {"a": "[" * 5_000}


def test_a_file_is_read_as_text_with_its_mark(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    text = read_file(tmp_path / "a.yaml", "a.yaml")
    assert text is not None
    assert read_document(text, "a.yaml").value == {"a": 1, "b": 2}


def test_bytes_that_are_no_text_are_told_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: 1\nb: \xe9t\xe9\n")
    with pytest.raises(SpecError, match=r"a\.yaml:2: not readable as UTF-8 text: got byte 0xe9 there") as caught:
        read_file(tmp_path / "a.yaml", "a.yaml")
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("", "a folder, expected a file", id="a folder"),
        pytest.param("none", "no such file", id="nothing"),
        pytest.param("x" * 5_000, "no such file", id="too long for a name"),
        pytest.param("a\0b", "no such file", id="no name at all"),
    ],
)
def test_where_there_is_no_file_it_is_said_why(tmp_path: Path, name: str, why: str) -> None:
    assert read_file(tmp_path / name, "x") is None
    assert absence(tmp_path / name) == why


def test_a_file_that_refuses_to_be_read_is_told() -> None:
    with pytest.raises(SpecError, match=r"mem: got .*, expected a file that can be read"):
        read_file(Path("/proc/self/mem"), "mem")
