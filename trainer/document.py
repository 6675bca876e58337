"""Reads YAML a person wrote, so that every error can name its line, and checks it against a model.

YAML is read by the 1.2 core schema, narrowed to what nobody misreads: `1e-3` and `1E5` are numbers, `no` and `on` are
text, and so are dates, `1:30`, `010`, `0x1F` and `1_000`. Lists come as tuples, whole numbers as int however spelt.
"""

from __future__ import annotations

import difflib
import errno
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainer.failure import SpecError

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML built without libyaml: the same nodes, ten times slower
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]  # both compose the same nodes

MAX_VALUES = 1_000_000
"""Values a document may come to once its aliases are written out; a few nested anchors can ask for billions."""
MAX_DEPTH = 100
MAX_ERRORS = 10
EXACT_INTEGER = 2**53  # up to here a float holds every whole number

Path = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

_PLAIN = "plain"  # marks what stands without quotes and tag: the only text that may mean a number, a bool or null
_STANDARD = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,39})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NAMED = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_SPECIAL_FLOAT = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Place(NamedTuple):
    """Where a value was written."""

    source: str
    line: int | None  # counted from 1; none where the source has no lines, as a command line has none

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Document:
    """A value read from text, and the place of each value within it."""

    source: str
    value: Any
    places: Mapping[Path, Place]  # of mapping entries the key's line, of list items the item's

    def place(self, path: Path) -> Place:
        """Where `path` was written, or the nearest thing around it that was."""
        for length in range(len(path), -1, -1):
            if (place := self.places.get(path[:length])) is not None:
                return place
        return Place(self.source, None)

    def without(self, keys: Iterable[str]) -> Document:
        """The same document without some keys of its outermost mapping."""
        gone = set(keys)
        return Document(self.source, {key: item for key, item in self.value.items() if key not in gone}, self.places)


class Problem(NamedTuple):
    """One thing wrong in a document."""

    path: Path
    message: str
    hint: str | None = None
    place: Place | None = None  # where it is, if not where the document has `path`


class _NodeLoader(_SafeLoader):
    """Composes nodes and leaves to `_Reader` what an untagged plain scalar means."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> str:  # noqa: ARG002 - PyYAML's signature
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else f"{_STANDARD}str"
        return f"{_STANDARD}{'map' if kind is yaml.MappingNode else 'seq'}"


_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


def read_file(path: pathlib.Path, source: str) -> str | None:
    """The text of the file, or of what else can be read there once; none where there is nothing, or a folder.

    Raises SpecError, which names `source`, on what may not be read and on what is no UTF-8 text.
    """
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SpecError(
            f"{source}:{line}: not readable as UTF-8 text: got byte 0x{error.object[error.start]:02x} there",
            hint="save it as UTF-8, which every editor can",
        ) from error
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise SpecError(
            f"{source}: got {error.strerror}, expected a file that can be read", hint="name one that you may read"
        ) from error
    except ValueError:  # a null in the name
        return None


def absence(path: pathlib.Path) -> str:
    """Why there is no file: `no such file`, or `a folder, expected a file`."""
    try:
        path.read_bytes()
    except IsADirectoryError:
        return "a folder, expected a file"
    except (OSError, ValueError):
        pass
    return "no such file"


def read_document(text: str, source: str) -> Document:
    """The value that YAML `text` holds, with the lines it came from; `source` names it in errors.

    Raises SpecError, with the line, on bad syntax, a key that stands twice, an unknown tag, or aliases out of bounds.
    """
    try:
        _refuse_depth(text, source)
        loader = _NodeLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, source) from error
    except RecursionError:
        raise _too_deep(source) from None
    reader = _Reader(source)
    value = reader.read(node, ()) if node is not None else None
    reader.places[()] = Place(source, 1 if node is None else node.start_mark.line + 1)
    return Document(source, value, reader.places)


_SUSPECT = 10 * MAX_DEPTH
_BRACKET = re.compile(r"[\[\]{}]")
_INDENT = re.compile(rf"^[ ?-]{{{_SUSPECT},}}", re.MULTILINE)


def _refuse_depth(text: str, source: str) -> None:
    """Raise SpecError where values nest so deep that libyaml, which recurses in C, would end the process.

    Only a text that looks like that is gone through: few have so many brackets open, or so long an indent.
    """
    deepest = depth = 0
    for found in _BRACKET.finditer(text):
        depth += 1 if found[0] in "[{" else -1
        deepest = max(deepest, depth)
    if deepest < _SUSPECT and _INDENT.search(text) is None:
        return
    depth = 0
    for event in yaml.parse(text, Loader=_NodeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _SUSPECT:
            raise _too_deep(source)


def _too_deep(source: str) -> SpecError:
    return SpecError(f"{source}: got values nested without end, expected at most {MAX_DEPTH} levels")


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[Path, Place] = {}
        self._open: list[yaml.Node] = []
        self._values = 0

    def read(self, node: yaml.Node, path: Path) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._error(node, f"got more than {MAX_VALUES:,} values, expected fewer: do aliases multiply here?")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if any(outer is node for outer in self._open):
            raise self._error(node, "got an alias to a value that holds it, expected values that end")
        if len(self._open) == MAX_DEPTH:
            raise self._error(node, f"got more than {MAX_DEPTH} levels of values within values")
        self._open.append(node)
        try:
            return self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._sequence(node, path)
        finally:
            self._open.pop()

    def _sequence(self, node: yaml.Node, path: Path) -> tuple[Any, ...]:
        if node.tag != f"{_STANDARD}seq":
            raise self._unknown_tag(node)
        items = []
        for index, item in enumerate(node.value):
            here = (*path, index)
            self.places[here] = self._place(item)
            items.append(self.read(item, here))
        return tuple(items)

    def _mapping(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        if node.tag != f"{_STANDARD}map":
            raise self._unknown_tag(node)
        own: dict[str, Any] = {}
        merges: list[yaml.Node] = []
        for key_node, item in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "got a list or mapping as a key, expected text")
            key = key_node.value
            if key == "<<" and key_node.tag == _PLAIN:
                merges += item.value if isinstance(item, yaml.SequenceNode) else [item]
                continue
            here = (*path, key)
            if key in own:
                first = self.places[here].line
                raise self._error(
                    key_node, f"{show_path(here)}: stands twice, first in line {first}", hint="keep one of the two"
                )
            self.places[here] = self._place(key_node)
            own[key] = self.read(item, here)
        for other in merges:
            own = {**self._merged(other, path), **own}  # what is written wins, then the first mapping that has the key
        return own

    def _merged(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, "<<: got no mapping, expected an alias to one or a list of such")
        written, self.places = self.places, {}
        value: dict[str, Any] = self.read(node, path)
        for place in self.places:
            written.setdefault(place, self.places[place])
        self.places = written
        return value

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag == f"{_STANDARD}str":
            return node.value
        if node.tag != _PLAIN and node.tag not in {f"{_STANDARD}{kind}" for kind in ("int", "float", "bool", "null")}:
            raise self._unknown_tag(node)
        return plain_value(node.value)

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.source, node.start_mark.line + 1)

    def _error(self, node: yaml.Node, message: str, hint: str | None = None) -> SpecError:
        return SpecError(f"{self._place(node)}: {message}", hint=hint)

    def _unknown_tag(self, node: yaml.Node) -> SpecError:
        return self._error(node, f"got the tag {node.tag}, expected a value without a tag", hint="remove the tag")


def plain_value(text: str) -> str | int | float | bool | None:
    """What a plain scalar means."""
    if text in _NAMED:
        return _NAMED[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return int(number) if number.is_integer() and abs(number) <= EXACT_INTEGER else number
    if found := _SPECIAL_FLOAT.fullmatch(text):
        return float("nan") if found[3] else float(f"{found[1]}inf")
    return text


def _syntax_error(error: yaml.YAMLError, text: str, source: str) -> SpecError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML")
    position = getattr(error, "position", None)
    if mark is None and isinstance(position, int):
        line = text.encode()[:position].count(b"\n") + 1
        return SpecError(f"{source}:{line}: got a character that YAML does not allow: {problem}")
    lines = text.rstrip("\n").split("\n")
    line = 1 if mark is None else min(mark.line + 1, len(lines))  # the end of the text lies behind its last line
    written = lines[line - 1].rstrip() if line <= len(lines) else ""
    hint = None
    if "\t" in written[: len(written) - len(written.lstrip())] or "'\\t'" in problem:
        hint = "indent with spaces: YAML allows no tabs there"
    elif "mapping values are not allowed" in problem:
        hint = "check the indentation, and put text that holds ': ' in quotes"
    elif "could not find expected ':'" in problem:
        hint = "each line of a mapping reads `key: value`; a colon or its space is missing"
    elif "expected a single document" in problem or "another document" in problem:
        hint = "remove the line '---': a file holds one document"
    elif "undefined alias" in problem:
        hint = "put text that starts with '*' in quotes, or define the anchor before it"
    elif "expected <block end>" in problem or "did not find expected key" in problem:
        hint = "check that the keys of a mapping start in the same column and that quotes are closed"
    elif "expected ',' or" in problem:
        hint = "a list or mapping in brackets was not closed"
    elif "scalar" in f"{problem} {getattr(error, 'context', '')}":
        hint = "a quote was not closed"
    return SpecError(
        f"{source}:{line}: not YAML: {problem}" + (f" in {written.strip()!r}" if written else ""), hint=hint
    )


class _Dumper(yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper):  # type: ignore[misc] # the same text
    """Writes YAML that this reader and a YAML 1.1 reader take for the same values."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _represent_text(dumper: yaml.representer.SafeRepresenter, text: str) -> yaml.ScalarNode:
    quoted = "'" if not isinstance(plain_value(text), str) else None
    return dumper.represent_scalar(f"{_STANDARD}str", text, style=quoted)


def _represent_list(dumper: yaml.representer.SafeRepresenter, items: Sequence[Any]) -> yaml.SequenceNode:
    flat = all(not isinstance(item, dict | list | tuple) for item in items)
    return dumper.represent_sequence(f"{_STANDARD}seq", items, flow_style=flat)


def _represent_float(dumper: yaml.representer.SafeRepresenter, number: float) -> yaml.ScalarNode:
    text = repr(number).replace("inf", ".inf").replace("nan", ".nan")
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # YAML 1.1 takes 1e-05 for text
    return dumper.represent_scalar(f"{_STANDARD}float", text)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)
_Dumper.add_representer(float, _represent_float)


def write_yaml(value: Any) -> str:
    """YAML of plain values, keys in their order, that `read_document` reads back as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def validate(model: type[Model], document: Document) -> Model:
    """The model's instance that `document` describes. Raises one SpecError that tells everything wrong with it.

    No value is bent to fit: text is no number, `no` no bool.
    """
    if not isinstance(document.value, dict):
        got = "nothing" if document.value is None else show_value(document.value)
        raise SpecError(f"{document.place(())}: got {got}, expected keys: {', '.join(_required(model))}, …")
    try:
        return model.model_validate(document.value, strict=True)
    except ValidationError as error:
        raise spec_error(problems_of(error, model, document.value), document) from error


def spec_error(problems: Sequence[Problem], document: Document) -> SpecError:
    """One error whose lines tell of each of `problems`, at most MAX_ERRORS of them, by its place in `document`."""
    assert problems
    shown = sorted(problems[:MAX_ERRORS], key=lambda problem: (problem.place or document.place(problem.path)).line or 0)
    lines = []
    for problem in shown:
        path = show_path(problem.path)
        place = problem.place or document.place(problem.path)
        lines.append(f"{place}: {f'{path}: ' if path else ''}{problem.message}")
        if problem.hint:
            lines.append(f"hint: {problem.hint}")
    if len(problems) > len(shown):
        lines.append(f"and {len(problems) - len(shown)} more")
    last_hint = lines.pop().removeprefix("hint: ") if lines[-1].startswith("hint: ") else None
    return SpecError("\n".join(lines), hint=last_hint)


def problems_of(error: ValidationError, model: type[BaseModel], value: Any) -> list[Problem]:
    """What pydantic found wrong with `value`, in words that need no knowledge of pydantic; one per place."""
    found: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        path = _clean_path(detail, value)
        found.setdefault(path, []).append(detail)
    for path, details in list(found.items()):
        # of a list whose items are all wrong, pydantic says that it is too short as well
        has_wrong_items = any(other[: len(path)] == path != other for other in found)
        if has_wrong_items and all(detail["type"] == "too_short" for detail in details):
            del found[path]
    return [_problem(path, details, model, value) for path, details in found.items()]


def _clean_path(detail: ErrorDetails, value: Any) -> Path:
    """The error's location without what pydantic adds of its own: names of union members and validators."""
    path: list[str | int] = []
    here = value
    for part in detail["loc"]:
        inside = here if isinstance(here, dict) else dict(enumerate(here)) if isinstance(here, tuple) else {}
        if part in inside:
            path.append(part)
            here = inside[part]
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    if detail["type"] == "union_tag_invalid":
        path.append(detail["ctx"]["discriminator"].strip("'"))
    return tuple(path)


_RELATIONS = {"gt": "greater than", "ge": "of at least", "lt": "less than", "le": "of at most"}


def _problem(path: Path, details: Sequence[ErrorDetails], model: type[BaseModel], value: Any) -> Problem:
    first = details[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(path, f"unknown key; got {path[-1]!r}", unknown_key_hint(model, path, value))
    if kind == "missing":
        return Problem(path, f"missing key; expected {_field_text(model, path, value)}")
    if kind == "value_error":
        text = str(context["error"])
        got = "" if "got " in text or isinstance(first["input"], dict) else f"got {show_value(first['input'])}, "
        return Problem(path, got + text, _near_value(first["input"], re.findall(r"[\w.-]+", text)))
    if kind == "union_tag_invalid":
        choices = re.findall(r"'([^']*)'", context["expected_tags"])
        return Problem(
            path, f"got {show_value(context['tag'])}, expected {_either(choices)}", _near_value(context["tag"], choices)
        )
    got = first["input"]
    wanted = list(dict.fromkeys(filter(None, (_wanted(detail) for detail in details))))
    may_be_null = any(type(None) in _members(annotation) for annotation in _annotations(model, path, value))
    if may_be_null:
        wanted.append("null")
    hint = None
    for detail in details:
        if detail["type"] == "literal_error":
            hint = hint or _near_value(got, re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
    return Problem(
        path, f"got {show_value(got)}, expected {_either(wanted)}", hint or _spelling_hint(kind, got, may_be_null)
    )


def _wanted(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}:
        relation, bound = next((key, context[key]) for key in _RELATIONS if key in context)
        return f"a number {_RELATIONS[relation]} {show_value(_tidy(bound))}"
    simple = {
        "int_type": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list",
        "list_type": "a list",
        "dict_type": "a mapping of keys to values",
        "model_type": "a mapping of keys to values",
        "model_attributes_type": "a mapping of keys to values",
    }
    if kind in simple:
        return simple[kind]
    if kind == "literal_error":
        return _either(re.findall(r"'([^']*)'", context["expected"])) or str(context["expected"])
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    if kind in {"too_short", "string_too_short"}:
        unit = "characters" if kind.startswith("string") else "items"
        return f"at least {context['min_length']} {unit}".replace("1 items", "1 item").replace("1 chars", "1 char")
    if kind in {"too_long", "string_too_long"}:
        return f"at most {context['max_length']} {'characters' if kind.startswith('string') else 'items'}"
    return str(detail["msg"]).removeprefix("Input should be ")


def _tidy(number: Any) -> Any:
    is_whole = isinstance(number, float) and number.is_integer() and abs(number) <= EXACT_INTEGER
    return int(number) if is_whole else number


def _spelling_hint(kind: str, got: Any, may_be_null: bool) -> str | None:
    if kind == "bool_type" and isinstance(got, str) and got.lower() in {"yes", "no", "on", "off", "y", "n"}:
        return f"write {'true' if got.lower() in {'yes', 'on', 'y'} else 'false'}"
    if kind == "string_type" and isinstance(got, bool | int | float):
        return f"put it in quotes: '{show_value(got)}'"
    if kind in {"int_type", "float_type", "number_or_list"} and isinstance(got, str):
        if got.lower() in {"none", "nil", "off", "no"}:
            return "write null" if may_be_null else None
        try:
            number = float(int(got, 0)) if re.match(r"[-+]?0[xob]", got) else float(got.replace("_", ""))
        except ValueError:
            return None
        plain = show_value(_tidy(number))
        return f"write {plain}, without quotes" if plain == got else f"write it plainly: {plain}"
    return None


def unknown_key_hint(model: type[BaseModel], path: Path, value: Any) -> str | None:
    """Which key was meant by the last part of `path`, or which keys there are."""
    known = sorted({name for owner in _models(model, path[:-1], value) for name in _field_names(owner)})
    near = nearest(str(path[-1]), known)
    if near is not None:
        return f"did you mean {near!r}?"
    deeper = [key for key in dotted_keys(model) if key.rpartition(".")[2] == path[-1]]
    if len(path) == 1 and deeper:
        return f"did you mean {deeper[0]!r}?"
    return f"keys here: {', '.join(known)}" if known else None


def nearest(got: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `got` was most likely meant to be; none when nothing is close."""
    near = difflib.get_close_matches(got, list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def did_you_mean(got: str, known: Iterable[str]) -> str | None:
    """A hint with the one of `known` that `got` was most likely meant to be; none when nothing is close."""
    near = nearest(got, known)
    return f"did you mean {near!r}?" if near else None


def _near_value(got: Any, choices: Iterable[str]) -> str | None:
    if not isinstance(got, str) or (near := nearest(got, choices)) is None or near == got:
        return None
    return f"did you mean {near!r}?"


def _either(choices: Sequence[str]) -> str:
    if len(choices) < 2:
        return "".join(choices)
    mixed = any(" or " in choice for choice in choices)
    return ", ".join(choices[:-1]) + (", or " if mixed else " or ") + choices[-1]


def show_path(path: Path) -> str:
    """`path` as a person writes it: `stages[1].vary.optimizer.lr`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def show_value(value: Any) -> str:
    """A short form of `value`, as YAML has it, for messages and names."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return re.sub(r"e([-+])0*(\d)", r"e\1\2", repr(_tidy(value)))
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:59] + "…")
    if isinstance(value, dict):
        inner = ", ".join(f"{key}: {show_value(item)}" for key, item in value.items())
        return f"{{{inner}}}" if len(inner) <= 60 else f"a mapping with keys {', '.join(map(str, value))}"[:80]
    if isinstance(value, list | tuple):
        inner = ", ".join(map(show_value, value))
        return f"[{inner}]" if len(inner) <= 60 else f"a list of {len(value)}"
    return str(value)


def dotted_keys(model: type[BaseModel]) -> dict[str, list[Any]]:
    """Every key that may be written under `model`, dotted, with the annotations it may have: `optimizer.lr`."""
    keys: dict[str, list[Any]] = {}

    def visit(owner: type[BaseModel], prefix: str) -> None:
        for name, field in owner.model_fields.items():
            key = f"{prefix}{field.alias or name}"
            keys.setdefault(key, []).append(field.annotation)
            for member in _members(field.annotation):
                if _is_model(member):
                    visit(member, f"{key}.")

    visit(model, "")
    return keys


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key; of mappings only the empty ones stay."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def takes_any_key(model: type[BaseModel], key: str) -> bool:
    """Whether dotted `key` lies in a mapping whose keys are free, as `model.arguments.dropout` does."""
    parts: Path = tuple(key.split("."))
    return any(
        get_origin(member) is dict
        for length in range(1, len(parts))
        for annotation in _annotations(model, parts[:length], None)
        for member in _members(annotation)
    )


def _required(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items() if field.is_required()]


def _field_text(model: type[BaseModel], path: Path, value: Any) -> str:
    for owner in _models(model, path[:-1], value):
        for name, field in owner.model_fields.items():
            if (field.alias or name) == path[-1]:
                return field.description or _shape_text(field.annotation)
    return "a value"


def _shape_text(annotation: Any) -> str:
    keys = [key for member in _members(annotation) if _is_model(member) for key in _required(member)]
    return f"a mapping with {' and '.join(dict.fromkeys(keys))}" if keys else "a value"


def _field_names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _members(annotation: Any) -> list[Any]:
    """What `annotation` allows, one by one: unions taken apart, metadata left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _models(model: type[BaseModel], path: Path, value: Any) -> list[type[BaseModel]]:
    """The models that what stands at `path` in `value` may be meant as."""
    here = value
    for part in path:
        here = here.get(part) if isinstance(here, dict) else _item(here, part)
    members = [m for annotation in _annotations(model, path, value) for m in _members(annotation) if _is_model(m)]
    return [member for member in members if _fits(member, here)] or members


def _item(value: Any, index: str | int) -> Any:
    return value[index] if isinstance(value, tuple) and isinstance(index, int) and index < len(value) else None


def _fits(model: type[BaseModel], value: Any) -> bool:
    """Whether `value` does not name another member of the union, by a field that is a literal, or by keys of it."""
    if not isinstance(value, dict):
        return True
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) is Literal and name in value and value[name] not in get_args(field.annotation):
            return False
    required = _required(model)
    return not required or any(key in value for key in required) or not value


def _annotations(model: type[BaseModel], path: Path, value: Any) -> list[Any]:
    """The annotations that the model has for `path`; where unions fork, those that `value` fits."""
    current: list[Any] = [model]
    here = value
    for part in path:
        members = [member for annotation in current for member in _members(annotation)]
        fitting = [member for member in members if not _is_model(member) or _fits(member, here)]
        current = []
        for member in fitting or members:
            arguments = get_args(member)
            if _is_model(member):
                fields = member.model_fields.items()
                current += [field.annotation for name, field in fields if (field.alias or name) == part]
            elif get_origin(member) is dict:
                current.append(arguments[1])
            elif get_origin(member) is tuple and isinstance(part, int):
                index = 0 if arguments[-1] is ... else part
                current += arguments[index : index + 1]
        here = here.get(part) if isinstance(here, dict) else _item(here, part)
    return current
