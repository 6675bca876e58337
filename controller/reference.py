"""Writes the reference pages and JSON Schemas of specs, grids and settings: `python -m controller.reference`.

With `--check` nothing is written: the exit status says whether the files are what the models come to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from controller.grid import EXTENSION
from controller.settings import Settings, Toleration
from controller.stages import (
    SPEC_KEYS,
    Form,
    GridFile,
    IncludingFile,
    Inclusion,
    KeepBest,
    KeepThis,
    PinnedRow,
    Published,
    PublishedRow,
    Stage,
    TestBest,
    TestThese,
)
from trainer.document import show_value
from trainer.spec import AUGMENTATIONS, NORMALIZATIONS, ExperimentSpec, NoIdentity, RunSpec

DOCS = Path(__file__).parent.parent / "docs"
_MARK = "<!-- written by `python -m controller.reference`; change the models, not this file -->"


def files() -> dict[str, str]:
    """The text of each generated file, by its name in docs/."""
    return {
        "spec-reference.md": spec_reference(),
        "grid-reference.md": grid_reference(),
        "grid.schema.json": json.dumps(grid_schema(), indent=2) + "\n",
        "settings-reference.md": settings_reference(),
        "settings.schema.json": json.dumps(settings_schema(), indent=2) + "\n",
    }


def grid_schema() -> dict[str, Any]:
    """The JSON Schema of a grid file, for editors; dotted keys of `vary`, `zip`, `set` and points are in it."""
    definitions: dict[str, Any] = {}
    for model in (GridFile, IncludingFile):
        schema = model.model_json_schema(by_alias=True)
        definitions |= schema.pop("$defs")
        anything = {f"^{EXTENSION}": {"description": "anything; there to hold anchors"}}
        definitions[model.__name__] = schema | {"patternProperties": anything}
    values = {key: _described(definitions, key) for key in SPEC_KEYS}
    free: dict[str, Any] = {r"^model\.arguments\.": {}}
    named = {"name": {"type": "string", "description": "the row's name"}, **values}
    definitions["Values"] = {"type": "object", "properties": values, "patternProperties": free} | _CLOSED
    definitions["Point"] = {
        "type": "object",
        "properties": named,
        "patternProperties": free,
        "minProperties": 1,
    } | _CLOSED
    lists = {key: {"type": "array", "minItems": 1, "items": value} for key, value in values.items()}
    definitions["Lists"] = {
        "type": "object",
        "properties": lists,
        "patternProperties": {r"^model\.arguments\.": {"type": "array", "minItems": 1}},
    } | _CLOSED
    stage = definitions["Stage"]["properties"]
    for key, name in (("set", "Values"), ("vary", "Lists"), ("zip", "Lists")):
        stage[key] = {"$ref": f"#/$defs/{name}", "description": stage[key]["description"]}
    stage["points"]["items"] = {"$ref": "#/$defs/Point"}
    stage["exclude"]["items"] = {"$ref": "#/$defs/Point"}
    form = definitions["Form"]["properties"]
    form["set"] = {"$ref": "#/$defs/Values", "description": form["set"]["description"]}
    form["map"]["propertyNames"] = {"anyOf": [{"enum": list(SPEC_KEYS)}, {"pattern": next(iter(free))}]}
    for owner in ("Published", "PublishedRow"):
        at = definitions[owner]["properties"]["at"]
        definitions[owner]["properties"]["at"] = {"$ref": "#/$defs/Values", "description": at["description"]}
    for owner in ("KeepThis", "PinnedRow", "PublishedRow"):
        pinned = definitions[owner]["properties"]["this"]
        definitions[owner]["properties"]["this"] = {"$ref": "#/$defs/Point", "description": pinned["description"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "if": {"required": ["include"]},
        "then": {"$ref": "#/$defs/IncludingFile"},
        "else": {"$ref": "#/$defs/GridFile"},
        "$defs": definitions,
    }


_CLOSED = {"additionalProperties": False}


def _described(definitions: dict[str, Any], key: str) -> dict[str, Any]:
    """The schema of the value at dotted `key`, of each union member that has it."""
    found = list(_schemas(definitions, {"$ref": "#/$defs/ExperimentSpec"}, key.split(".")))
    unique = [schema for index, schema in enumerate(found) if schema not in found[:index]]
    assert unique, f"the models have {key}, their schema does not"
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def _schemas(definitions: dict[str, Any], schema: dict[str, Any], path: list[str]) -> Iterator[dict[str, Any]]:
    if not path:
        yield schema
        return
    if "$ref" in schema:
        yield from _schemas(definitions, definitions[schema["$ref"].rpartition("/")[2]], path)
    for member in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _schemas(definitions, member, path)
    if path[0] in schema.get("properties", {}):
        yield from _schemas(definitions, schema["properties"][path[0]], path[1:])


def spec_reference() -> str:
    """Markdown: every key of a spec."""
    lines = [
        "# Spec reference",
        "",
        _MARK,
        "",
        "The `base` of a grid has these keys, and so has the `spec.yaml` that the trainer reads. A key left out has",
        "its default; an unknown key is an error.",
        "A key marked with ° is no part of a run's identity: changing it makes no new run.",
        "",
        *_section(ExperimentSpec, "", "##"),
        "## Named pipelines of `augmentation`",
        "",
        *_presets(AUGMENTATIONS),
        "## Named values of `data.normalize`",
        "",
        *_presets(NORMALIZATIONS),
        "## `spec.yaml`",
        "",
        "A run's spec has all of the above with every default and fingerprint written out, and these keys:",
        "",
        *_table(
            [
                ("`run`", "text", "", "the run's id"),
                ("`hash`", "text", "", "SHA-256 of all that can change its numbers; a mismatch is refused"),
                _row(RunSpec, "seed", ""),
            ]
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def grid_reference() -> str:
    """Markdown: every key of a grid file."""
    lines = ["# Grid reference", "", _MARK, "", _GRID_INTRODUCTION, ""]
    for model, title in (
        (GridFile, "The grid"),
        (Stage, "A stage"),
        (KeepBest, "`keep`: the best"),
        (KeepThis, "`keep`: this one, because …"),
        (TestBest, "`test`: the best N"),
        (TestThese, "`test`: these, because …"),
        (PinnedRow, "An item of `these`"),
        (Published, "`published`"),
        (PublishedRow, "An item of its `rows`"),
        (Form, "A form"),
        (IncludingFile, "A grid made of grids"),
        (Inclusion, "An item of `include` that takes some stages"),
    ):
        lines += [f"## {title}", "", _first_line(model), ""]
        lines += _table([_row(model, name, "") for name in model.model_fields])
    return "\n".join(lines).rstrip() + "\n"


_GRID_INTRODUCTION = """\
A grid file says what to compare. `grid.schema.json` beside this page lets an editor complete and check it: put
`# yaml-language-server: $schema=<path>/grid.schema.json` in its first line.

A dotted key (`optimizer.lr`) names a value of the [spec](spec-reference.md), and so does the name of a whole part
(`optimizer`, `augmentation`, `model`). A value takes the place of what was at its key: a part given as a whole has
defaults for what it leaves out. `points`, `zip` and `vary` of one stage make their product; within it the last key
goes round fastest. Rows are named by the values that the stage varies (`lr=0.01 gamma=0.5`) or by a point's `name`.

A key of the outermost mapping that begins with `x-` may hold anything and means nothing: a place for YAML anchors,
as in `x-small: &small {epochs: 2, batch_size: 16}` and then `base: {<<: *small, …}`.

Equal experiments, wherever they stand, share their runs: what was trained once is not trained again.

`forms` are variants by name: `grid run mine.mini` and `grid run grids/mine.mini.yaml` train the form `mini` of `mine`,
a grid of its own in the store. A form sets values of the base, and of stages that `set` the same; what stages compare
stays, unless the form maps it. `include` makes a grid of other grids, without copying: their stages stand in it as
`<grid>.<stage>`, each with its own base, and its forms are those that all of them have. In the store each grid stands
on its own: there is no `forms` or `include` in it any more.

`published` figures stand beside ours in every table, with the difference; what was not published stays empty. They are
left out, and the table says so, where a row is not the experiment that they were published for (`at`); what `--set`
changes in the base is told below the table."""


def settings_schema() -> dict[str, Any]:
    """The JSON Schema of a settings file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema(by_alias=True)}


def settings_reference() -> str:
    """Markdown: every key of a settings file."""
    lines = ["# Settings reference", "", _MARK, "", _SETTINGS_INTRODUCTION, "", *_section(Settings, "", "##")]
    lines += ["## An item of `tolerations`", "", _first_line(Toleration), ""]
    lines += _table([_row(Toleration, name, "") for name in Toleration.model_fields])
    return "\n".join([*lines, _SETTINGS_EXAMPLES]).rstrip() + "\n"


_SETTINGS_INTRODUCTION = """\
Settings say where and how a grid's runs are placed on a cluster. They are no part of a run's identity: the same run in
another namespace, on another GPU, has the same id and the same result. A grid keeps the settings it was submitted with.

`--settings FILE` names a file, or `kind` or `gpu`, which come with the program; GRID_SETTINGS does so for a whole
session. `--setting key=value` changes one key of it, as `--set` does in a grid: `--setting gpu.count=2`,
`--setting env.TORCH_LOGS=+all`, `--setting queue=null`. A key left out has its default; an unknown key is an error.
`settings.schema.json` beside this page lets an editor complete and check a file: put
`# yaml-language-server: $schema=<path>/settings.schema.json` in its first line.

The defaults pass Pod Security `restricted`: no root, no capability, a read-only root file system, no API token."""

_SETTINGS_EXAMPLES = """\
## What is decided for you

- **Threads.** OMP_NUM_THREADS is always set, from the processors requested and never from the node's, because numbers
  hang on it: the same run on a large and on a small node computes the same. A run that has begun keeps the threads of
  its first attempt.
- **Memory.** The limit is the request unless you say otherwise: a pod that may use more than it asked for is ended when
  its neighbours want theirs. On a GPU, what earlier runs report is the GPU's memory, so `auto` is 8Gi there.
- **Writable places.** /tmp, /cache and /dev/shm, and nothing else. /tmp and a cache without a claim go with the pod.
- **Failures.** Exits 64, 65 and 70 fail the Job at once; 75, 143, evictions and preemptions are not counted; all else
  is tried again until `max_tries` attempts have brought no newer checkpoint.
- **Last words.** The trainer writes why it failed to the termination message; of one that could not, Kubernetes keeps
  the end of its log.

## The pod template patch

It has the keys of a pod template, `metadata` and `spec`, and is merged as `kubectl patch` merges: mappings key by key,
`containers`, `env`, `volumes`, `volumeMounts` and the like item by item, other lists as a whole; null removes a key. It
comes last and may add whatever your cluster wants. What the contract with the trainer needs it may not touch: image,
arguments, the variables and volumes that are set here, restart policy, grace period, the API token, the labels that the
controller goes by. A further container belongs under `initContainers` with `restartPolicy: Always`, which makes it a
sidecar: a Job waits for every other one to end. On OpenShift, which gives out user ids itself:

    pod_template_patch:
      spec: {securityContext: {runAsUser: null, runAsGroup: null, fsGroup: null}}
"""


def _section(model: type[BaseModel], prefix: str, heading: str) -> list[str]:
    """A table of the model's own keys, then a section for each part of it."""
    lines = _table([_row(model, name, prefix) for name in model.model_fields])
    for name, field in model.model_fields.items():
        parts = [member for member in _members(field.annotation) if _is_model(member)]
        for part in parts:
            key = f"{prefix}{name}"
            kind = f" with `name: {get_args(part.model_fields['name'].annotation)[0]}`" if len(parts) > 1 else ""
            lines += [f"{heading} `{key}`{kind}", "", _first_line(part), "", *_section(part, f"{key}.", heading)]
    return lines


def _row(model: type[BaseModel], name: str, prefix: str) -> tuple[str, str, str, str]:
    field = model.model_fields[name]
    outside = "°" if any(isinstance(mark, NoIdentity) for mark in field.metadata) else ""
    default = "" if field.is_required() else _default(field)
    return f"`{prefix}{field.alias or name}`{outside}", _kind(field), default, field.description or _part_line(field)


def _part_line(field: FieldInfo) -> str:
    lines = [_first_line(member) for member in _members(field.annotation) if _is_model(member)]
    return lines[0] if len(lines) == 1 else "one of those below" if lines else ""


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{show_value(value)}`" if value not in ((), {}, "") else "none"


def _kind(field: FieldInfo) -> str:
    members = [_kind_of(member) for member in _members(field.annotation)]
    bounds = [_BOUNDS[name].format(show_value(getattr(mark, name))) for mark in _marks(field) for name in _BOUNDS
              if getattr(mark, name, None) is not None]  # fmt: skip
    text = " or ".join(dict.fromkeys(members))
    bounds = list(dict.fromkeys(bounds))
    return text + (f", {' and '.join(bounds)}" if bounds else "")


_BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}


def _marks(field: FieldInfo) -> list[Any]:
    inner = [argument for argument in get_args(field.annotation) if get_origin(argument) is Annotated]
    found = list(field.metadata)
    for each in inner:
        found += get_args(each)[1:]
    return [mark for top in found for mark in (getattr(top, "metadata", None) or [top])]


def _kind_of(annotation: Any) -> str:
    simple = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "null", Any: "any"}
    if annotation in simple:
        return simple[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        of = " or ".join(dict.fromkeys(map(_kind_of, _members(arguments[0]))))
        return f"list of {of}" if arguments[-1] is ... else f"list of {len(arguments)} × {of}"
    return "mapping"


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


def _table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    return [*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows), ""]


def _presets(presets: dict[str, Any]) -> list[str]:
    lines = []
    for name, values in presets.items():
        told = ", ".join(f"{key} {show_value(value)}" for key, value in values.items())
        lines.append(f"- `{name}`: {told.replace('perspective {}', 'perspective with its defaults') or 'nothing'}")
    return [*lines, ""]


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` say which of them are out of date; the exit status."""
    stale = [name for name, text in files().items() if not (DOCS / name).is_file() or (DOCS / name).read_text() != text]
    if "--check" in arguments:
        for name in stale:
            sys.stderr.write(f"docs/{name}: not what the models come to\nhint: python -m controller.reference\n")
        return 1 if stale else 0
    DOCS.mkdir(exist_ok=True)
    for name in stale:
        (DOCS / name).write_text(files()[name])
        sys.stdout.write(f"docs/{name}: written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
