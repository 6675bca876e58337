"""`grid` with all its commands. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import gc as garbage
import sys
from typing import Any

import click
from click.shell_completion import get_completion_class

from controller import interrupts
from controller.commands.cluster import retry, submit, watch
from controller.commands.data import data
from controller.commands.grids import list_grids, plan, show
from controller.commands.intents import cancel, pause, resume
from controller.commands.logs import logs
from controller.commands.render import render
from controller.commands.report import report
from controller.commands.runs import reopen, run, status, table
from controller.commands.serve import serve
from controller.commands.surface import store_option
from controller.commands.tensorboard import tensorboard
from controller.commands.upkeep import doctor, gc
from controller.commands.weights import weights
from controller.commands.winner import diff, export, predict
from controller.output import UNWRITTEN, OutputError, drop_stdout, guard_stdout
from controller.wording import plain

SECTIONS = {
    "Compare": ("list", "show", "plan", "run", "status", "table", "report", "tensorboard"),
    "Single runs": ("diff", "export", "predict"),
    "On a cluster": ("submit", "watch", "logs", "pause", "resume", "cancel", "render", "serve"),
    "When something went wrong": ("retry", "reopen", "doctor"),
    "Data and upkeep": ("data", "weights", "gc", "completion"),
}

EPILOG = """\
\b
Exit codes:
  0   done
  1   doctor found something wrong
  2   the command line cannot be read
  64  the grid or a value given is wrong, or the output cannot be written
  65  data or weights are wrong or missing
  69  the store cannot be reached or used
  70  runs failed for good; `grid status` says why
  71  the device is broken, or torch cannot be loaded here
  72  the cluster cannot be reached, or refuses
  75  stopped; the same command goes on from there
  130 interrupted by Ctrl-C before there was anything to go on from
"""


def _lines(text: str) -> str:
    return "\n".join(map(plain, text.splitlines()))


class Commands(click.Group):
    """The commands in sections; an error of ours ends in its message and exit code, never in a traceback."""

    def __call__(self, *words: Any, **settings: Any) -> Any:
        """Run as the program does, which hears Ctrl-C at any moment and tells of output that cannot be written."""
        if not settings.get("standalone_mode", True):
            return super().__call__(*words, **settings)
        interrupts.listen()
        guard_stdout()
        try:
            return super().__call__(*words, **settings)
        except interrupts.Interrupted:
            interrupts.end(interrupts.INTERRUPTED, interrupts.TOLD)
        except OutputError as error:
            drop_stdout()
            click.echo(f"error: the output cannot be written: {error.strerror}", err=True)
            sys.exit(UNWRITTEN)

    def invoke(self, ctx: click.Context) -> Any:
        """What the command returns."""
        from trainer.failure import GridError

        # what a command makes lives as long as the command: of 10,000 rows, looking for garbage was 40 % of the time
        garbage.freeze()
        garbage.set_threshold(1_000_000)
        try:
            return super().invoke(ctx)
        except GridError as error:
            click.echo(f"error: {_lines(error.message)}", err=True)
            if error.hint:
                click.echo(f"hint: {_lines(error.hint)}", err=True)
            ctx.exit(int(error.exit_code))

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section."""
        width = max(map(len, self.commands))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{name:<{width}}", self.commands[name].get_short_help_str(200)) for name in names]
                )


@click.group(
    cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="experiment-grid", prog_name="grid", message="%(prog)s %(version)s")
@store_option
def main() -> None:
    """Train a grid of image classifiers, and compare them in one table.

    A grid is a YAML file that says what to compare, stage by stage. What it comes to is trained once, kept in a
    store (a folder or S3), and shown side by side.

    \b
    Begin with:
      grid data digits digits           write a small data set to the folder digits
      grid data import digits digits    bring it into the store
      grid plan demo                    see what would be trained
      grid run demo                     train it; Ctrl-C saves, the same command goes on
      grid table demo                   compare
    """


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete commands, grids, stages and data sets.

    \b
    Examples:
      eval "$(grid completion bash)"     in ~/.bashrc
      eval "$(grid completion zsh)"      in ~/.zshrc
      grid completion fish | source      in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "grid", "_GRID_COMPLETE").source())


COMMANDS = (
    *(list_grids, show, plan, run, status, table, report, tensorboard),
    *(diff, export, predict),
    *(submit, watch, logs, pause, resume, cancel, render, serve),
    *(retry, reopen, doctor),
    *(data, weights, gc, completion),
)
for command in COMMANDS:
    main.add_command(command)
