"""The benchmarks' arithmetic and their document; that they run at all is tried on synthetic pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import (
    BEGIN,
    END,
    Figure,
    Row,
    Target,
    in_turn,
    merged,
    read_figures,
    table_text,
    write_document,
    write_figures,
)

ROOT = Path(__file__).resolve().parent.parent


def row(name: str = "a", **values: Any) -> Row:
    given = {"name": name, "what": f"what {name}", "against": "bare", "ratios": (1.0, 3.0, 2.0)}
    return Row(**{**given, **values})


@pytest.mark.parametrize(
    ("target", "ratio", "verdict"),
    [
        (Target(0.9, 0.97, more_is_better=True), 0.97, "aim"),
        (Target(0.9, 0.97, more_is_better=True), 0.9, "yes"),
        (Target(0.9, 0.97, more_is_better=True), 0.89, "no"),
        (Target(3, 1.5, more_is_better=False), 1.5, "aim"),
        (Target(3, 1.5, more_is_better=False), 3.0, "yes"),
        (Target(3, 1.5, more_is_better=False), 3.01, "no"),
    ],
    ids=["more-aim", "more-bound", "more-short", "less-aim", "less-bound", "less-short"],
)
def test_a_ratio_is_held_against_its_target(target: Target, ratio: float, verdict: str) -> None:
    assert target.verdict(ratio) == verdict


def test_sides_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    seconds = in_turn({"a": lambda: side("a"), "b": lambda: side("b")}, 2, lambda _: None)
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_row_shows_the_median_and_what_falls_short() -> None:
    cells = row(target=Target(0.9, 0.97, more_is_better=False)).cells()
    assert cells[4:] == ("2.000", "1.000 … 3.000", "≤ 0.9", "0.97", "no")


def test_an_absolute_figure_shows_its_unit_and_no_other_side() -> None:
    memory = row(ratios=(240.4, 251.6, 245.0), unit="MB", ours="245 MB", target=Target(400, 250, more_is_better=False))
    assert memory.cells()[2:] == ("245 MB", "", "", "240 … 252 MB", "≤ 400 MB", "250 MB", "aim")
    assert table_text([memory]).splitlines()[2:] == [
        "  245 MB (240 … 252 MB over 3 rounds), wanted ≤ 400 MB, aim 250 MB: aim met"
    ]


def test_figures_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    figures = [
        Figure("m", "2026-01-02", row(target=Target(1, 2, more_is_better=True))),
        Figure("m", "2026-01-02", row("b", ratios=(), skipped="no GPU here")),
        Figure("m", "2026-01-02", row("c", unit="MB")),
    ]
    write_figures(tmp_path / "figures.json", figures)
    assert read_figures(tmp_path / "figures.json") == figures
    assert read_figures(tmp_path / "none.json") == []


def test_a_new_figure_replaces_the_old_one_of_its_machine_and_a_skipped_one_never_does() -> None:
    old = [Figure("m", "1", row("a")), Figure("m", "1", row("b")), Figure("n", "1", row("a"))]
    new = [Figure("m", "2", row("a")), Figure("m", "2", row("b", ratios=(), skipped="no data"))]
    assert merged(old, new) == [new[0], old[1], old[2]]


def test_the_document_keeps_its_prose_and_gets_the_tables(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_document(document, [Figure("machine m", "2026-01-02", row("a", what="a|b", note="of 3"))])
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n\n### machine m\n")
    assert text.endswith(f"- a|b: of 3\n\n{END}\nafter\n")
    assert "| a\\|b | bare |" in text
    assert "old" not in text


def test_a_document_without_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text("prose", encoding="utf-8")
    with pytest.raises(ValueError, match=r"benchmarks\.md: expected the lines"):
        write_document(tmp_path / "benchmarks.md", [])


@pytest.mark.slow
def test_quick_benchmarks_give_their_rows() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "alexnet", "grid"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n  ratio ") == 6
    assert "AlexNet, batch 256\n  against the usual script" in done.stdout
    assert "`grid table` of 100 results, fresh process" in done.stdout


@pytest.mark.slow
def test_without_the_real_images_their_rows_say_so() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CALTECH101_DIR"}
    command = [sys.executable, "-m", "benchmarks", "start"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "not measured: CALTECH101_DIR is not set" in done.stdout


@pytest.mark.slow
def test_without_servers_and_a_cluster_their_rows_say_so(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "KIND_CACHE": str(tmp_path),
        "GRID_KUBERNETES_BIN": str(tmp_path),
        "PATH": str(tmp_path),
    }
    names = ("jobs", "controller", "table-s3", "requests", "submit")
    command = [sys.executable, "-m", "benchmarks", "--quick", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not measured: no etcd and no kube-apiserver: `make kind-up` builds them") == 7
    assert done.stdout.count("not measured: no etcd and no kube-apiserver and no kube-controller-manager") == 1
    assert done.stdout.count("not measured: no minio: `make kind-up` builds it") == 3
    assert done.stdout.count("not measured: no cluster of `make kind-up` is here") == 1
