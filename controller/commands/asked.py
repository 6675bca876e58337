"""What a command line asks of a grid that may be on a cluster, as one value: many commands ask in the same words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from controller.commands.reach import Reach, cluster_options
from controller.commands.surface import choice_options, grid_argument, json_option, store_option


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of a command about GRID, by the names that click has for them. --store is in `the_store`."""

    grid: str
    stages: tuple[str, ...]
    only: str | None
    reach: Reach
    as_json: bool


def asked_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add GRID, --store, --stage, --only, --settings, --setting, --context and --json, handed on as one Asked.

    Further options of the command follow it by name.
    """

    @functools.wraps(function)
    def gathered(**given: Any) -> None:
        function(Asked(**{each.name: given.pop(each.name) for each in fields(Asked)}), **given)

    options: Callable[..., None] = gathered
    for each in (json_option, cluster_options, choice_options, store_option, grid_argument):
        options = each(options)
    return options
