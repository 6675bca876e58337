"""`grid weights`: state dicts into the store, and what the store has of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from controller.commands.data import ImportProgress
from controller.commands.surface import (
    READING_SECONDS,
    json_option,
    note,
    print_each,
    print_facts,
    print_json,
    store_option,
    tell,
    the_store,
)
from controller.wording import bytes_text, count_text, listed, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from controller.weights import Weights
    from trainer.spec import Scalar

SHOWN = 5  # names of tensors that are listed before it says how many more there are
DIGITS_SHOWN = 12  # of a hash, in a list


@click.group()
def weights() -> None:
    """Import pretrained weights, and look at them.

    A grid names a file of the store with model.weights; its runs start from it, all but their last layer.

    \b
    Example:
      grid weights import https://download.pytorch.org/models/alexnet-owt-7be5be79.pth
    """


def _complete_weights(ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """Weights files of the store; none where it cannot be asked: a completion has nowhere to show an error."""
    from controller.weights import weights_names
    from trainer.failure import GridError

    try:
        with ctx.scope(cleanup=False):
            return [name for name in weights_names(the_store(patience_seconds=1)) if name.startswith(incomplete)]
    except GridError:
        return []


def _parse_arguments(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> Mapping[str, Scalar]:
    """Keyword arguments of the network: `width=64`, each value as YAML has it."""
    found: dict[str, Any] = {}
    for each in given:
        key, separator, text = each.partition("=")
        if not separator or not key.isidentifier():
            raise click.BadParameter(f"got {each!r}, expected KEY=VALUE such as width=64")
        found[key] = _scalar(text)
    return found


def _scalar(text: str) -> Scalar:
    from trainer.document import read_document
    from trainer.failure import SpecError

    try:
        value = read_document(text, "--argument").value
    except SpecError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def _network_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add --architecture and --argument: which network the file is tried on."""
    function = click.option(
        "--argument",
        "arguments",
        metavar="KEY=VALUE",
        multiple=True,
        callback=_parse_arguments,
        help="With --architecture: a keyword argument of the network, such as width=64. May be repeated.",
    )(function)
    return click.option(
        "--architecture",
        metavar="A",
        help="The network to try it on, as a grid names it: alexnet, or package.module:function. Default: what the "
        "file's name tells.",
    )(function)


@weights.command("import")
@click.argument("source", metavar="FILE|URL")
@store_option
@click.option("--name", metavar="NAME", help="What it is called in the store. Default: as it is called where it is.")
@_network_options
@click.option("--replace", is_flag=True, help="Take the place of another file of this name.")
@click.option("--max-bytes", type=click.IntRange(1), metavar="N", help="Most that FILE or URL may have.")
@json_option
def import_(
    source: str,
    name: str | None,
    architecture: str | None,
    arguments: Mapping[str, Scalar],
    replace: bool,
    max_bytes: int | None,
    as_json: bool,
) -> None:
    """Import a state dict into the store, so that a grid can start from it.

    FILE or URL is what torch.save(model.state_dict(), file) wrote (.pth, .pt), or safetensors. Nothing in it is ever
    run. A name that ends in a hash, as those of torchvision's files do (alexnet-owt-7be5be79.pth), must tell the
    truth. The file must fit the network that its name or --architecture says, all but the last layer, which is always
    a new one. What is refused leaves nothing behind; importing the same file again changes nothing.

    \b
    Examples:
      grid weights import https://download.pytorch.org/models/resnet50-0676ba61.pth
      grid weights import best.pth --name birds.pth --architecture resnet18
      grid weights import small.safetensors --architecture my_networks:small --argument width=64
    """
    from controller.weights import MAX_BYTES, given_model, import_weights

    store = the_store()
    progress = ImportProgress(sys.stderr)
    try:
        imported = import_weights(
            source,
            store,
            name=name,
            model=given_model(architecture, arguments),
            replace=replace,
            max_bytes=max_bytes or MAX_BYTES,
            progress=progress,
        )
    finally:
        progress.close()
    found = imported.weights
    if imported.outcome == "replaced" and found.grids:
        note(
            f"{listed(found.grids, SHOWN)} named the file that this replaced: runs that start from it are new ones "
            "now; `grid run GRID --update` trains them"
        )
    if as_json:
        print_json({"outcome": imported.outcome, "vouched": imported.vouched, **_record(found)})
        return
    words = {"new": "imported", "unchanged": "in the store already, nothing to do", "replaced": "replaced"}
    tell(f"weights {plain(found.name)}: {words[imported.outcome]}: {bytes_text(found.size)}{_contents_text(found)}")
    if imported.vouched is not None:
        tell(f"SHA-256 begins with {imported.vouched}, as the name says")
    else:
        tell(f"nothing vouches for it; SHA-256 {found.sha256}")
    _tell_fit(found)


def _contents_text(found: Weights) -> str:
    if found.contents is None:
        return ""
    held = found.contents
    return f", {count_text(held.num_tensors, 'tensor')} of {held.num_numbers:,} numbers, {', '.join(held.dtypes)}"


def _tell_fit(found: Weights) -> None:
    """Say which network the file fits, and what becomes of its last layer."""
    fit = found.fit
    if found.contents is not None and found.contents.wrapped and not (fit is not None and fit.fits):
        note(
            "each of its names begins with `module.`, as nn.DataParallel saves them: no network fits that is built "
            "without it; save its `.module`'s state dict"
        )
    if fit is None:
        tell("which network it fits was not looked at: --architecture says which to try")
        return
    if not fit.fits:
        for problem in fit.problems or ["it would take nothing from it"]:
            tell(f"does not fit {fit.architecture}: {problem}")
        return
    own = f", instead of the file's of {count_text(fit.num_outputs, 'output')}" if fit.num_outputs is not None else ""
    tell(
        f"fits {fit.architecture}: {count_text(fit.num_loaded, 'tensor')}; its last layer {fit.head} is a new one{own}"
    )
    if fit.left_out:
        tell(f"left out, as the network is built without them: {listed(fit.left_out, SHOWN)}", indent=2)


def _record(found: Weights) -> dict[str, Any]:
    fit = found.fit
    return {
        "weights": found.name,
        "bytes": found.size,
        "sha256": found.sha256,
        "vouched_by_name": found.vouched,
        "grids": list(found.grids),
        "contents": found.contents and found.contents.model_dump(mode="json"),
        "fit": fit and {"fits": fit.fits, **fit.model_dump(mode="json")},
    }


@weights.command("list")
@store_option
@json_option
def list_weights(as_json: bool) -> None:
    """Show the weights in the store, and which grids start from them.

    \b
    Example:
      grid weights list
    """
    from controller.weights import known_weights, weights_names

    store = the_store(patience_seconds=READING_SECONDS)
    print_each(
        weights_names(store),
        lambda name: known_weights(store, name),
        _in_short,
        _record,
        nothing=f"no weights in {store.uri} yet: grid weights import FILE",
        as_json=as_json,
    )


@weights.command("remove")
@click.argument("name", metavar="NAME", shell_complete=_complete_weights)
@store_option
@click.option("--force", is_flag=True, help="Also where grids in the store name it.")
@json_option
def remove(name: str, force: bool, as_json: bool) -> None:
    """Remove weights NAME from the store. What was trained from them stays.

    
    Example:
      grid weights remove birds.pth
    """
    from controller.weights import remove_weights

    found = remove_weights(the_store(), name, force=force)
    if as_json:
        print_json({"removed": True, **_record(found)})
        return
    tell(f"weights {plain(found.name)}: removed: {bytes_text(found.size)}")
    if found.grids:
        note(f"runs of {listed(found.grids, SHOWN)} lack it now: `grid plan GRID` says which")


def _in_short(found: Weights) -> str:
    used = f"; {listed(found.grids, SHOWN)}" if found.grids else ""
    vouched = ", as its name says" if found.vouched else ""
    digits = found.sha256[:DIGITS_SHOWN]
    return f"{plain(found.name)}: {bytes_text(found.size)}, SHA-256 {digits}…{vouched}{used}"


@weights.command("show")
@click.argument("name", metavar="NAME", shell_complete=_complete_weights)
@store_option
@_network_options
@json_option
def show(name: str, architecture: str | None, arguments: Mapping[str, Scalar], as_json: bool) -> None:
    """Show what weights NAME hold, and how they fit a network.

    \b
    Examples:
      grid weights show alexnet-owt-7be5be79.pth
      grid weights show birds.pth --architecture resnet18
    """
    from controller.weights import given_model, read_weights

    found = read_weights(the_store(), name, given_model(architecture, arguments))
    if as_json:
        print_json(_record(found))
        return
    held = found.contents
    assert held is not None
    vouched = f"begins with {found.vouched}, as the name says" if found.vouched else "nothing vouches for it"
    print_facts(
        {
            "weights": found.name,
            "size": bytes_text(found.size),
            "SHA-256": f"{found.sha256} ({vouched})",
            "tensors": f"{held.num_tensors:,} of {held.num_numbers:,} numbers, {', '.join(held.dtypes)}",
            "grids": ", ".join(found.grids) or "none names it",
        }
    )
    click.echo()
    _tell_fit(found)
