"""How a grid stands by what the store has, with every decision recorded that this allows; whoever trains it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from controller.archive import Adoption, adopt, gather_facts, homes, read_held, record_decision
from controller.grid import Grid
from controller.knowledge import read_decisions, read_failures, read_numbers, read_tests
from controller.search import Decision, Expansion, Facts, Run, expand, fitting, wanted
from controller.selection import Waiting, due_decisions
from controller.standing import Choice, Known, Work, chosen_work, refuse_no_fit
from trainer.store import Store


@dataclass(frozen=True, slots=True)
class Sight:
    """A grid with all that its decisions make known, and what the store says of its runs."""

    expansion: Expansion
    runs: Mapping[str, Run]
    homes: Mapping[str, tuple[str, ...]]
    work: tuple[Work, ...]  # all that is known of, in the order of stages and rows
    known: Known
    waiting: Mapping[str, Waiting]  # by stage that is not decided

    def label(self, work: Work) -> str:
        """The work as people know it: its first home, its seed where there are several, and whether it is a test."""
        seed = f" seed {self.runs[work.run].seed}" if len(self.expansion.seeds) > 1 else ""
        return f"{self.homes[work.run][0]}{seed}{' test' if work.is_test else ''}"


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A grid that is to be trained now, and is the one that the store has under its name."""

    facts: Facts
    expansion: Expansion  # as far as its decisions reached
    adoption: Adoption


def take_up(grid: Grid, store: Store, choice: Choice, *, update: bool = False, facts: Facts | None = None) -> TakenUp:
    """Make `grid` the store's, with the intent `active`; wrong values and an empty choice are told before that.

    `facts` are those of the grid, gathered where none are given. Raises SpecError and DataError, and SpecError as
    `adopt` does.
    """
    facts = facts or gather_facts(store, wanted(grid))
    expand(grid, {}, facts)
    expansion = fitting(grid, read_decisions(store, grid.name), facts)[0]
    refuse_no_fit(choice, grid, expansion)
    return TakenUp(facts, expansion, adopt(grid, store, facts, update=update))


def adoption_text(grid: Grid, adoption: Adoption) -> list[str]:
    """What became of the grid in the store, where that is worth a word."""
    told = [f"grid {grid.name} updated" + "".join(f"\n{line}" for line in adoption.changes)] if adoption.changes else []
    return told + [f"the decision of stage {stage} no longer fits and is set aside" for stage in adoption.set_aside]


def expanded(grid: Grid, decisions: Mapping[str, Decision], facts: Facts, known: Known | None = None) -> Sight:
    """The grid as far as `decisions` make it known, with what was `known` of its runs before."""
    expansion = expand(grid, decisions, facts)
    known = known or Known()
    return Sight(
        expansion,
        expansion.runs(),
        homes(expansion),
        chosen_work(expansion, Choice()),
        replace(known, decisions=decisions),
        {},
    )


def observe(
    grid: Grid,
    store: Store,
    facts: Facts,
    before: Sight | None = None,
    *,
    about: Collection[Work] | None = None,
    tell: Callable[[Decision], None] | None = None,
) -> Sight:
    """How the grid stands now; each decision that is recorded on the way is told, as it stands then.

    Numbers that `before` holds are not read again. With `about` only this work, and what decisions then make known, is
    looked at; all else is as it was. Raises SpecError where a decision does not fit the grid any more.
    """
    if before is None or about is None:
        decisions = read_decisions(store, grid.name)
        sight = expanded(grid, decisions, facts, before.known if before else None)
        sight = _with_known(sight, _read_all(store, sight, grid.name))
    else:
        sight = _with_known(before, _read_about(store, before.known, about))
    while True:
        known = sight.known
        said = due_decisions(grid, sight.expansion, known.results, known.failures, datetime.now(UTC), known.held)
        made = [each for each in said.values() if isinstance(each, Decision)]
        if not made:
            waiting = {stage: each for stage, each in said.items() if isinstance(each, Waiting)}
            return _with_known(sight, known, waiting)
        for each in made:
            stands = record_decision(store, grid.name, each)
            if tell is not None:
                tell(stands)
        following = expanded(grid, read_decisions(store, grid.name), facts, known)
        new = set(following.work).difference(sight.work)
        sight = _with_known(following, _read_about(store, following.known, new))


def _with_known(sight: Sight, known: Known, waiting: Mapping[str, Waiting] | None = None) -> Sight:
    return Sight(sight.expansion, sight.runs, sight.homes, sight.work, known, waiting or {})


def _read_all(store: Store, sight: Sight, grid: str) -> Known:
    tested = [work.run for work in sight.work if work.is_test]
    return Known(
        sight.known.decisions,
        read_numbers(store, sight.runs, sight.known.results),
        read_tests(store, tested, sight.known.tests),
        read_failures(store, sight.runs),
        read_held(store, grid),
    )


def _read_about(store: Store, known: Known, about: Collection[Work]) -> Known:
    if not about:
        return known
    runs = list(dict.fromkeys(work.run for work in about))
    tested = [work.run for work in about if work.is_test]
    kept = {run: failure for run, failure in known.failures.items() if run not in set(runs)}
    return Known(
        known.decisions,
        {**known.results, **read_numbers(store, runs, known.results)},
        {**known.tests, **read_tests(store, tested, known.tests)},
        {**kept, **read_failures(store, runs)},
        known.held,
    )
