"""A grid in one of its forms: the same document with some values others. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from controller.rows import MISSING, assign, same
from controller.stages import BASE
from trainer.document import Document, did_you_mean, plain_value, show_value
from trainer.document import Path as DocumentPath
from trainer.failure import SpecError

FORMS = "forms"


def in_form(document: Document, form: str | None) -> Document:
    """The grid file's document in that form, as it is without one; in neither are forms any more.

    Raises SpecError on a form that the grid has not. The document is one that its model takes.
    """
    forms = document.value.get(FORMS, {})
    if form is None:
        return document.without((FORMS,))
    if form not in forms:
        raise no_such_form(document.value["grid"], form, list(forms))
    change = Change(forms[form], form)
    value = {key: item for key, item in document.value.items() if key != FORMS}
    value["grid"] = f"{value['grid']}.{form}"
    value["description"] = forms[form].get("description") or value.get("description", "")
    value[BASE] = change.base(value[BASE])
    value["stages"] = tuple(change.stage(stage) for stage in value["stages"])
    if forms[form].get("seeds") is not None:
        value["seeds"] = forms[form]["seeds"]
    return replace(document, value=value, places=_places(document, form, forms[form].get("set", {})))


def change_of(document: Document, form: str | None) -> Change | None:
    """What that form of the grid file changes; none without one, or where it has none of that name."""
    forms = document.value.get(FORMS, {})
    return None if form is None or form not in forms else Change(forms[form], form)


def no_such_form(grid: str, form: str, forms: Sequence[str]) -> SpecError:
    """What to say of a form that the grid has not."""
    wanted = f"one of {', '.join(forms)}" if forms else "none: the grid has no forms"
    return SpecError(f"grid {grid}: got form {show_value(form)}, expected {wanted}", hint=did_you_mean(form, forms))


def noted(published: Mapping[str, Any], note: str, changed: Iterable[str]) -> dict[str, Any]:
    """Published figures with a further note on all of them: the keys `changed` have other values here."""
    told = {**published, "note": "; ".join(filter(None, (published.get("note"), note)))}
    apart = tuple(dict.fromkeys((*published.get("apart", ()), *filter(_is_of_other_numbers, changed))))
    return {**told, "apart": apart} if apart else told


def _is_of_other_numbers(key: str) -> bool:
    """Whether figures cannot be compared with those of another value there: of other images, or another network."""
    return key.partition(".")[0] in ("data", "model")


def _places(document: Document, form: str, sets: Mapping[str, Any]) -> dict[DocumentPath, Any]:
    """Where things stand: what the form gives the base, in the form."""
    places = dict(document.places)
    for key in sets:
        path = (BASE, *key.split("."))
        places = {place: where for place, where in places.items() if place[: len(path)] != path}
        places[path] = document.place((FORMS, form, "set", key))
    return places


class Change:
    """What a form does to the parts of a grid file."""

    def __init__(self, form: Mapping[str, Any], name: str) -> None:
        self.sets: Mapping[str, Any] = form.get("set", {})
        self.maps: Mapping[str, Mapping[str, Any]] = form.get("map", {})
        self.drops_seeds = form.get("seeds") is not None
        self.note = f"figures of the whole grid, not of its form {name}"
        self.keys = (*self.sets, *self.maps)

    def base(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """A base in the form: mapped where it has what is mapped, then with all that is set."""
        changed = dict(base)
        for key in self.maps:
            if (value := _at(changed, key)) is not MISSING:
                changed = assign(changed, key.split("."), self._mapped(key, value))
        for key, value in self.sets.items():
            changed = assign(changed, key.split("."), value)
        return changed

    def stage(self, stage: Mapping[str, Any]) -> dict[str, Any]:
        """A stage in the form: its own values, those it compares, and the rows that it names."""
        changed = dict(stage)
        if self.drops_seeds:
            changed.pop("seeds", None)
        if stage.get(BASE) is not None:
            changed[BASE] = self.base(stage[BASE])
        if "set" in stage:
            fixed = self._values(stage["set"])
            changed["set"] = {key: self.sets.get(key, value) for key, value in fixed.items()}
        for part in ("vary", "zip"):
            if part in stage:
                changed[part] = {key: tuple(self._value(key, each) for each in values)
                                 for key, values in stage[part].items()}  # fmt: skip
        if "points" in stage:
            changed["points"] = tuple(self._values(point) for point in stage["points"])
        if "exclude" in stage:
            changed["exclude"] = tuple(self._named(each) for each in stage["exclude"])
        for part, rows in (("keep", None), ("test", "these"), ("published", "rows")):
            if isinstance(stage.get(part), Mapping):
                changed[part] = self.naming(stage[part], rows)
        if isinstance(changed.get("published"), Mapping):
            changed["published"] = noted(changed["published"], self.note, self.keys)
        return changed

    def naming(self, part: Mapping[str, Any], rows: str | None = None) -> dict[str, Any]:
        """What names rows by their values, itself or in a list of such at the key `rows`."""
        changed = {key: self._named(value) if key in ("this", "at") else value for key, value in part.items()}
        if rows is not None and rows in part:
            changed[rows] = tuple(self.naming(row) for row in part[rows])
        return changed

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._mapped(key, value) for key, value in values.items()}

    def _values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._value(key, value) for key, value in values.items()}

    def _value(self, key: str, value: Any) -> Any:
        """A stage's own value at `key`: mapped; a part given as a whole has in it what the form sets."""
        value = self._mapped(key, value)
        if isinstance(value, Mapping):
            for other in self.maps:
                if other.startswith(f"{key}.") and (inner := _at(value, other[len(key) + 1 :])) is not MISSING:
                    value = assign(value, other[len(key) + 1 :].split("."), self._mapped(other, inner))
            for other, wanted in self.sets.items():
                if other.startswith(f"{key}."):
                    value = assign(value, other[len(key) + 1 :].split("."), wanted)
        return value

    def _mapped(self, key: str, value: Any) -> Any:
        for text, wanted in self.maps.get(key, {}).items():
            if same(plain_value(text), value) or text == value:  # the key of a mapping is text, whatever it means
                return wanted
        return value


def _at(values: Mapping[str, Any], key: str) -> Any:
    inner: Any = values
    for part in key.split("."):
        inner = inner.get(part, MISSING) if isinstance(inner, Mapping) else MISSING
    return inner
