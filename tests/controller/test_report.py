"""The report: what it says of a grid that is whole in part, and that nobody's text becomes markup."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from reports import ATTACK, CLASSES, SCRIPT, gathered, new_store, shown_store

from controller.cli import main
from controller.grid import Grid
from controller.predicted import Predictions
from controller.report import story
from controller.report.columns import TECHNICAL, shown_tables
from controller.report.files import figure_files
from controller.report.gather import Gathered
from controller.report.page import page
from controller.report.tested import MISTAKES_SHOWN, mistakes, read_predictions, scores
from controller.report.text import to_latex, to_markdown
from controller.stages import KeepThis, Published, PublishedRow
from trainer.failure import DataError
from trainer.store import FileStore

LIMIT_BYTES = 5_000_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, FileStore]:
    return shown_store(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def shown(place: tuple[Grid, FileStore]) -> Gathered:
    return gathered(*place)


@pytest.fixture(scope="module")
def html(shown: Gathered) -> str:
    return page(shown)


class Elements(HTMLParser):
    """The elements of a page in order, each with its attributes and its own text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs, _ in self.found if name == tag]


# What the predictions say


def predictions(labels: list[int], answers: list[int], sure: float = 2.0) -> Predictions:
    logits = np.zeros((len(labels), 3), dtype=np.float32)
    logits[np.arange(len(labels)), answers] = sure
    return Predictions(np.arange(len(labels)), np.array(labels), logits)


def test_scores_count_answers_by_true_class_over_all_seeds() -> None:
    found = scores([predictions([0, 0, 1], [0, 1, 1]), predictions([0, 0, 1], [1, 1, 1])])
    assert found.counts.tolist() == [[1, 3, 0], [0, 2, 0], [0, 0, 0]]
    assert [(each.label, each.accuracy, each.num_images) for each in found.by_class] == [(0, 0.25, 4), (1, 1.0, 2)]
    assert [each.label for each in found.worst] == [0]
    assert [each.label for each in found.best] == [1]
    assert [(each.label, each.answer, each.num_images, each.part) for each in found.confusions] == [(0, 1, 3, 0.75)]


def test_the_surest_mistake_comes_first_with_its_probability() -> None:
    made = Predictions(
        np.array([4, 9, 7]),
        np.array([0, 0, 1]),
        np.array([[0, 5, 0], [0, 1, 0], [0, 9, 0]], dtype=np.float32),
    )
    found = mistakes(made)
    assert [(each.image, each.label, each.answer) for each in found] == [(4, 0, 1), (9, 0, 1)]
    assert found[0].probability == pytest.approx(math.exp(5) / (math.exp(5) + 2))


def test_mistakes_are_bounded_in_number() -> None:
    assert len(mistakes(predictions([0] * 99, [1] * 99))) == MISTAKES_SHOWN


def test_predictions_of_other_classes_are_an_error_with_their_key(file_store: FileStore) -> None:
    out = io.BytesIO()
    np.savez_compressed(out, index=[0], label=[1], logits=np.zeros((1, 2)))
    file_store.put("runs/r/test/predictions.npz", out.getvalue())
    with pytest.raises(DataError, match=r"runs/r/test/predictions\.npz: got answers of 2 classes, expected 3"):
        read_predictions(file_store, "runs/r/test/predictions.npz", 3)


# What is read of the store


def test_attempts_are_read_in_order_and_their_epochs_merged(shown: Gathered) -> None:
    run = next(each for each in shown.runs.values() if each.result is not None)
    assert [each.name for each in run.attempts] == ["0001-aaaaaaaa", "0002-bbbbbbbb"]
    assert [row.epoch for row in run.metrics] == [1, 2, 3, 4, 5, 6]
    assert max(row.train_loss for row in run.metrics) < 50


def test_a_run_that_is_not_done_has_its_epochs_and_its_time(shown: Gathered) -> None:
    run = next(each for each in shown.runs.values() if each.attempts and each.attempts[0].name.endswith("dddd"))
    assert (run.state, run.best_epoch, run.seconds) == ("waiting", 2, 4.0)


def test_a_sheet_shows_the_same_images_each_time(place: tuple[Grid, FileStore], shown: Gathered) -> None:
    again = gathered(*place)
    pairs = zip(shown.data[0].sheet, again.data[0].sheet, strict=True)
    assert all(one[0] == other[0] and one[1].tobytes() == other[1].tobytes() for one, other in pairs)
    assert 0 < len(shown.data[0].sheet) <= 24


def test_each_mistake_is_the_image_that_it_says(shown: Gathered) -> None:
    row = shown.tested[0]
    assert row.scores is not None
    assert len(row.mistakes) == len(CLASSES)
    for mistake in row.mistakes:
        assert mistake.path.startswith(f"{mistake.label}/")
        assert mistake.image is not None
        assert mistake.answer != mistake.label


# What it says


def test_the_winner_is_the_best_of_the_last_test_with_the_reason(shown: Gathered) -> None:
    found = story.winner(shown, shown_tables(shown.table))
    assert found is not None
    assert (found.stage, found.experiment) == ("final", "rate/lr=0.01")
    assert "lowest mean validation_loss" in found.because
    assert dict(found.numbers)["validation accuracy"] == "0.790 ± 0.010"
    assert not found.is_final


def test_the_path_tells_what_each_stage_tried_kept_and_why(shown: Gathered) -> None:
    rate, decay, final = story.steps(shown)
    assert [(one.name, one.is_kept, one.state) for one in rate.tried] == [
        ("lr=0.001", False, "done"),
        ("lr=0.01", True, "done"),
        ("lr=1", False, "failed"),
    ]
    assert rate.chosen == story.RULE
    assert rate.because.startswith("lowest validation_loss, mean over 3 seeds: 0.408")
    assert (decay.start, decay.chosen, decay.because) == ("starts from what rate keeps", story.AUTHOR, SCRIPT)
    assert final.kept == ("rate/lr=0.01", "rate/lr=0.001")


def test_an_authors_reason_is_quoted_and_these_numbers_speak_for_themselves(shown: Gathered) -> None:
    rows = tuple(
        replace(row, best=row.experiment == "lr=0.01", kept=row.experiment == "lr=0.001")
        for row in shown.table.stages[0].rows
    )
    stage = replace(shown.table.stages[0], rows=rows)
    pinned = KeepThis(this={"optimizer.lr": 0.001}, because="the best of its stage")
    grid = replace(
        shown.grid, stages=(shown.grid.stages[0].model_copy(update={"keep": pinned}), *shown.grid.stages[1:])
    )
    table = replace(shown.table, stages=(stage, *shown.table.stages[1:]))
    step = story.steps(replace(shown, grid=grid, table=table))[0]
    assert step.chosen == "chosen by the grid's author and not by these numbers"
    assert step.here == "here its validation_loss is 1.020; the lowest is 0.408 (lr=0.01)"


def test_a_winner_that_has_learned_nothing_is_no_good_news(shown: Gathered) -> None:
    final = shown.table.stages[2]
    rows = tuple(replace(row, beats_majority=False) for row in final.rows)
    table = replace(shown.table, stages=(*shown.table.stages[:2], replace(final, rows=rows)))
    changed = replace(shown, table=table)
    found = story.winner(changed, shown_tables(table))
    assert found is not None
    assert found.doubt.startswith("it is not better than the majority class in test accuracy, which scores 0.")
    assert 'class="winner doubtful"' in page(changed)
    assert "not above the majority class" in page(changed)
    assert "it has learned nothing" in to_markdown(changed).replace("It has", "it has")


def test_figures_of_other_data_are_told_before_any_number(shown: Gathered) -> None:
    figures = Published(
        apart=("data.name",), rows=(PublishedRow(this={"optimizer.lr": 0.01}, numbers={"validation_loss": 3.24}),)
    )
    first = shown.grid.stages[0].model_copy(update={"published": figures})
    told = story.apart(replace(shown, grid=replace(shown.grid, stages=(first, *shown.grid.stages[1:]))))
    assert told is not None
    assert "they come from colours, random weights and 6 epochs" in told
    assert story.apart(shown) is None


def test_what_reproduces_it_begins_with_code_data_and_store(shown: Gathered) -> None:
    commands = [command for _, command in story.reproduction(shown)]
    assert commands == [
        "git checkout 0123456789abcdef",
        "export GRID_STORE=file:///FOLDER",
        "grid data import colours SRC --split every-third",
        "grid run shown",
        "grid report shown",
    ]
    assert shown.data[0].index.fingerprint in story.reproduction(shown)[2][0]


def test_what_is_missing_is_named_with_its_reason(shown: Gathered) -> None:
    found = story.missing(shown)
    assert any(line.startswith("rate/lr=1: failed: diverged") or "lr=1" in line for line in found)
    assert any(line.startswith(f"decay/{ATTACK}") for line in found)


def test_a_grid_in_which_nothing_ran_has_a_report(tmp_path: Path) -> None:
    nothing = gathered(*new_store(tmp_path))
    text = page(nothing)
    assert "there is no winner to name" in text
    assert "stage rate is not decided" in text
    assert "No stage has kept a row yet." in to_markdown(nothing)
    assert [name for name, _ in figure_files(nothing) if not name.startswith("data-")] == []


def test_images_that_the_store_lacks_are_told_and_the_rest_is_there(tmp_path: Path) -> None:
    grid, store = shown_store(tmp_path)
    for entry in list(store.list("datasets/")):
        if entry.key.endswith(".tar"):
            store.delete(entry.key)
    found = gathered(grid, store)
    assert any("shard-train" in line for line in story.missing(found))
    assert found.tested[0].mistakes[0].image is None
    assert "not in the store" in page(found)


def test_what_a_run_lacks_is_told_or_left_out(tmp_path: Path) -> None:
    grid, store = shown_store(tmp_path)
    for entry in list(store.list("runs/")):
        if entry.key.endswith((".npz", "provenance.json")):
            store.delete(entry.key)
    found = gathered(grid, store)
    assert any("predictions.npz: not in the store" in line for line in story.missing(found))
    assert "ended before it wrote where it computes" in page(found)


# The page


def test_the_same_value_gives_the_same_page(shown: Gathered, html: str) -> None:
    assert page(shown) == html


def test_no_text_becomes_markup(html: str) -> None:
    elements = Elements(html)
    assert len(elements.named("script")) == 2
    assert all(str(image["src"]).startswith("data:image/") for image in elements.named("img"))
    assert not [name for _, attrs, _ in elements.found for name in attrs if name.startswith("on")]
    assert "&lt;img src=x" in html


def test_the_page_needs_nothing_else(html: str) -> None:
    elements = Elements(html)
    links = [attrs.get("href") or "" for tag, attrs, _ in elements.found if tag in ("a", "link", "use")]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)|fetch\(|https?://(?!www\.w3\.org)", html)
    assert any("default-src 'none'" in str(each.get("content")) for each in elements.named("meta"))
    assert len(html.encode()) < LIMIT_BYTES


def test_every_id_is_there_once_and_every_link_leads_somewhere(html: str) -> None:
    elements = Elements(html)
    ids = [attrs["id"] for _, attrs, _ in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {str(attrs["href"])[1:] for tag, attrs, _ in elements.found if tag in ("a", "use")}
    assert links <= set(ids)


def test_the_numbers_of_the_curves_are_read_back_from_the_page(html: str) -> None:
    text = html.partition('<script type="application/json" id="numbers">')[2].partition("</script>")[0]
    numbers: dict[str, Any] = json.loads(text)
    assert any(ATTACK in line["name"] for panel in numbers.values() for line in panel["lines"])
    rate = numbers["c1-loss"]["lines"][1]
    assert rate["name"] == "lr=0.01"
    assert rate["epochs"] == [1, 2, 3, 4, 5, 6]
    assert rate["values"][0] == 0.5
    assert len(rate["spreads"]) == 6


def test_every_row_stands_with_the_command_that_trains_it(html: str) -> None:
    assert "grid run shown --only rate/lr=0.01" in html
    assert html.count("python -m trainer squeezenet1-1-") == html.count('<details class="run"')


def test_rows_that_cannot_be_told_from_the_best_are_said_from_three_seeds_on(shown: Gathered) -> None:
    rate = shown_tables(shown.table)[0]
    said = {row.name: row.beside_best for row in rate.rows}
    assert said["lr=0.01"] == ""
    assert said["lr=0.001"].startswith("worse than the best: by +0.582 to +0.642")


def test_the_metric_that_decides_comes_first_and_technical_numbers_are_no_core(shown: Gathered) -> None:
    rate, _, final = shown_tables(shown.table)
    assert rate.columns[0].number == "validation_loss"
    assert [column.number for column in final.columns[:2]] == ["test_accuracy", "validation_loss"]
    for table in (rate, final):
        assert 0 < table.num_core < len(table.columns)
        assert not {column.number for column in table.columns[: table.num_core]} & TECHNICAL


def test_a_model_that_is_tested_twice_stands_once(shown: Gathered) -> None:
    twice = [replace(shown.tested[0], stage="other"), *shown.tested]
    text = page(replace(shown, tested=tuple(twice)))
    assert text.count("Confusion matrix of") == len(shown.tested)
    assert "One model under 2 names" in text


def test_a_model_with_one_answer_is_told_in_a_sentence(shown: Gathered) -> None:
    row = shown.tested[0]
    degenerate = scores([predictions([0, 1, 2], [2, 2, 2])])
    assert degenerate.only_answer == 2
    assert degenerate.accuracy == pytest.approx(1 / 3)
    text = page(replace(shown, tested=(replace(row, scores=degenerate),)))
    assert f"It answers <b>{CLASSES[2]}</b> for every test image" in text
    assert "Most confident mistakes" not in text
    assert "Every test image is recognised" not in text


# Markdown and LaTeX


def test_markdown_shows_names_as_they_are(shown: Gathered) -> None:
    text = to_markdown(shown)
    assert "<img" not in text
    assert "<script" not in text
    assert "## The path" in text
    assert "### rate" in text
    assert "lr=0.01" in text


def test_latex_has_a_table_for_each_stage_and_escapes_what_is_special(shown: Gathered) -> None:
    text = to_latex(shown)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    assert r"\textbf{lr=0.01}" in text
    assert r"\textless{}img src=x onerror=\textquotedbl{}" in text
    assert r"validation\_loss" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    heads = {line.count(" & ") for line in rows if line.strip().startswith("experiment")}
    assert {line.replace(r"\&", "").count(" & ") for line in rows} == heads


def test_latex_takes_no_name_for_an_argument_of_the_row_before_it(shown: Gathered) -> None:
    first = shown.table.stages[0]
    rows = tuple(replace(row, experiment=name) for row, name in zip(first.rows, ("[a]", "*", "c"), strict=True))
    text = to_latex(replace(shown, table=replace(shown.table, stages=(replace(first, rows=rows),))))
    assert [line.split(" & ")[0].strip() for line in text.splitlines() if "{[}" in line or "{*}" in line] == [
        "{[}a]",
        r"\textbf{{*}}",
    ]


# The command


def call(*words: str, expected: int = 0) -> str:
    result = CliRunner().invoke(main, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expected, result.output
    return result.output


def test_the_command_leaves_page_and_figures_in_the_store(tmp_path: Path) -> None:
    _, store = shown_store(tmp_path)
    store.put("grids/shown/figures/run-of-a-row-that-left.svg", b"old")
    told = call("--store", store.uri, "report", "shown", "-o", str(tmp_path / "copy.html"))
    assert "copy.html" in told
    assert (tmp_path / "copy.html").read_bytes() == store.get("grids/shown/report.html")
    names = {entry.key.rpartition("/")[2] for entry in store.list("grids/shown/figures/")}
    parts = {
        f"data-colours-{part}.{end}"
        for part in ("whole", "train", "validation", "test", "sheet")
        for end in ("svg", "png")
    }
    assert parts | {"stage-rate.svg", "stage-rate.png", "confusion-final-1.svg"} <= names
    assert sum(name.startswith("run-") for name in names) == 2 * 10
    assert "run-of-a-row-that-left.svg" not in names


@pytest.mark.parametrize(
    ("words", "beginning"),
    [
        pytest.param(("--format", "md"), "# shown", id="Markdown"),
        pytest.param(("--format", "latex"), "% Tables of the grid shown", id="LaTeX"),
    ],
)
def test_text_forms_are_printed(place: tuple[Grid, FileStore], words: tuple[str, ...], beginning: str) -> None:
    assert call("--store", place[1].uri, "report", "shown", *words).startswith(beginning)


def test_an_ending_that_says_no_form_is_refused(place: tuple[Grid, FileStore]) -> None:
    assert ".tex" in call("--store", place[1].uri, "report", "shown", "-o", "report.pdf", expected=64)
