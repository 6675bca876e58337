"""A grid's runs as TensorBoard shows them: their event files in a folder, under the names that people gave, and served.

1. `Logdir.refresh` brings the folder up to date with the store: what has changed is fetched, a run that has no event
   file gets one from its metrics, a tested one its numbers on the test part. A run that stands in several stages stands
   in each of their folders: `<stage>/<experiment>/seed <n>`.
2. A file grows at its end, which is all that a TensorBoard that has it open takes notice of. Where more has changed,
   as when a stage is decided and its rows come, `refresh` says so, and `Board` starts TensorBoard anew.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from controller.grid import Grid
from controller.knowledge import NUM_CONNECTIONS, read_decisions, read_tests, runs_with_results, runs_with_tests
from controller.search import Decision, Expansion, Facts, Run, fitting
from controller.standing import Choice
from controller.wording import plain
from trainer.events import event_file, events_key, experiment_file, hyperparameters, in_group, record_of_test
from trainer.failure import DataError, GridError, SpecError
from trainer.history import METRICS, PROVENANCE, read_epochs
from trainer.store import NotFound, Store

HOST = "127.0.0.1"  # curves are nobody's but the user's: TensorBoard asks for no password
FIRST_PORT, NUM_PORTS = 6006, 10  # TensorBoard's own, where no port is asked for
START_SECONDS = 60.0  # for TensorBoard to answer: it imports for seconds, on a busy machine for many
END_SECONDS = 5.0  # for it to end when it is told to
NAME_BYTES = 200  # of a folder's name; file systems allow 255
TAIL_LINES = 5
MAX_POINTS = 10_000  # of a curve; of a longer one TensorBoard leaves some out. Its 0 for all draws none at all

Home = tuple[str, str]  # stage and experiment


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the event file of a run was last made from."""

    versions: Mapping[str, str]  # of the objects, by key
    is_done: bool  # nothing more can come, but a test
    is_tested: bool


class Logdir:
    """A folder for TensorBoard with the chosen part of a grid, as far as the store has it."""

    def __init__(self, grid: Grid, store: Store, facts: Facts, choice: Choice, folder: Path) -> None:
        self.grid = grid
        self.store = store
        self.facts = facts
        self.choice = choice
        self.folder = folder
        self.lacking: dict[str, str] = {}
        """Why a run is left out, by run."""
        self._decisions: Mapping[str, Decision] | None = None
        self._runs: dict[str, Run] = {}
        self._homes: dict[str, list[Home]] = {}
        self._columns = b""
        self._seen: dict[str, _Seen] = {}
        self._shown: set[str] = set()
        self._files: set[Path] = set()

    @property
    def num_runs(self) -> int:
        """Runs with curves."""
        return len(self._shown)

    def refresh(self) -> bool:
        """Bring the folder up to date; whether a TensorBoard that reads it must start anew to see all of that.

        Raises StoreError, and what `expand` raises.
        """
        self._expand()
        done, tested = set(runs_with_results(self.store)), set(runs_with_tests(self.store))
        wanted = [run for run in self._runs if not self._is_settled(run, tested)]
        is_other = []
        with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="events") as pool:
            made = pool.map(lambda run: self._made(run, run in done, run in tested), wanted)
            for run, data in zip(wanted, made, strict=True):
                if data:
                    self._shown.add(run)
                    is_other += [_put(path, in_group(data, row)) for path, row in self._places(run).items()]
        is_other.append(_put(self.folder / "events.out.tfevents.0.grid", self._columns))
        return self._remove_others() or any(is_other)

    def _expand(self) -> None:
        decisions = read_decisions(self.store, self.grid.name)
        if decisions == self._decisions:
            return
        expansion, _ = fitting(self.grid, decisions, self.facts)
        before, self._homes, self._decisions = self._homes, _homes(expansion, self.choice), decisions
        self._runs = {run: each for run, each in expansion.runs().items() if run in self._homes}
        # what stands elsewhere now is read once more, and written there
        self._seen = {run: seen for run, seen in self._seen.items() if self._homes.get(run) == before.get(run)}
        self._shown &= set(self._seen)
        rows = {home: self._runs[run].hyperparameters for run, homes in self._homes.items() for home in homes}
        is_tested = any(stage.test is not None for stage in self.grid.stages)
        self._columns = experiment_file(list(map(hyperparameters, rows.values())), is_tested=is_tested, time=0.0)

    def _places(self, run: str) -> dict[Path, str]:
        """The run's files, and the name of the row of each."""
        seed, name = f"seed {self._runs[run].seed}", events_key(run).rpartition("/")[2]
        return {self.folder.joinpath(*map(folder_name, home), seed, name): "/".join(home) for home in self._homes[run]}

    def _remove_others(self) -> bool:
        """Remove the files of runs that do not stand there any more; whether there were any."""
        wanted = {path for run in self._shown for path in self._places(run)}
        gone, self._files = self._files - wanted, wanted
        for path in gone:
            _remove(path, self.folder)
        return bool(gone)

    def _is_settled(self, run: str, tested: set[str]) -> bool:
        seen = self._seen.get(run)
        return seen is not None and seen.is_done and seen.is_tested == (run in tested)

    def _made(self, run: str, is_done: bool, is_tested: bool) -> bytes | None:
        """The run's event file, if it is another than before."""
        seen = _Seen(self._versions(run), is_done, is_tested)
        before = self._seen.get(run)
        data = None
        if before is None or (before.versions, before.is_tested) != (seen.versions, seen.is_tested):
            try:
                data = self._read(run, is_tested=is_tested)
            except DataError as error:
                self.lacking[run] = error.message
                return None
        self.lacking.pop(run, None)
        self._seen[run] = seen
        return data

    def _versions(self, run: str) -> dict[str, str]:
        """What a run's event file is made from: itself where the store has it, else the metrics of all attempts."""
        found = {each.key: each.version for each in self.store.list(events_key(run)) if each.key == events_key(run)}
        if not found:
            ends = (METRICS, PROVENANCE)
            attempts = self.store.list(f"runs/{run}/attempts/")
            found = {each.key: each.version for each in attempts if each.key.endswith(ends)}
        return found

    def _read(self, run: str, *, is_tested: bool) -> bytes:
        data, epochs = b"", None
        with suppress(NotFound):
            data = self.store.get(events_key(run))
            in_group(data, run)  # raises DataError where it is none
        if not data or is_tested:
            epochs = read_epochs(self.store, run)
            data = data or event_file(self._runs[run].spec, epochs)
            best = next((epoch for epoch in reversed(epochs) if epoch.metrics.best), None)
            test = read_tests(self.store, [run]).get(run) if is_tested else None
            if best is not None and test is not None:
                data += record_of_test(test, best)
        return data


def _homes(expansion: Expansion, choice: Choice) -> dict[str, list[Home]]:
    """Stage and experiment of each place where a chosen run stands: a tested one is in the stage that trained it."""
    found: dict[str, list[Home]] = {}
    for stage in expansion.stages:
        for experiment in stage.experiments:
            of_stage, _, name = experiment.name.partition("/") if stage.is_test else (stage.name, "", experiment.name)
            for run in experiment.runs:
                if choice.takes(stage.name, experiment.name, run.id):
                    homes = found.setdefault(run.id, [])
                    if (of_stage, name) not in homes:
                        homes.append((of_stage, name))
    return found


def folder_name(text: str) -> str:
    """A name for a folder that reads as `text` does: no longer than file systems allow, and in no other folder."""
    name = plain(text).replace("/", "\N{DIVISION SLASH}")
    name = f"_{name}" if name.startswith(".") or not name else name
    if len(name.encode()) <= NAME_BYTES:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name.encode()[: NAME_BYTES - 12].decode(errors='ignore')}… {digest}"


def _put(path: Path, data: bytes) -> bool:
    """Let the file hold `data`; whether it held something that this does not go on from."""
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = None
    if before is not None and data.startswith(before):
        if len(data) > len(before):
            with path.open("ab") as file:
                file.write(data[len(before) :])
        return False
    beside = path.with_name(".being-written")
    beside.write_bytes(data)
    beside.replace(path)
    return before is not None


def _remove(path: Path, top: Path) -> None:
    """Remove the file, and the folders up to `top` that are empty then."""
    path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == top:
            return
        with suppress(OSError):  # another run's file is there
            folder.rmdir()


class Board:
    """A TensorBoard over a folder, on this machine alone, for as long as this is entered."""

    def __init__(self, folder: Path, scratch: Path, port: int | None, title: str) -> None:
        self.port = free_port() if port is None else port
        self._folder = folder
        self._scratch = scratch  # for what it writes itself
        self._title = title
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://localhost:{self.port}/"

    def __enter__(self) -> Self:
        """Start it. Raises SpecError where the port is taken, BoardError where it does not come to answer."""
        if is_taken(self.port):
            raise SpecError(
                f"--port: got {self.port}, on which something listens already",
                hint="leave --port out: a free port is chosen then",
            )
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._end()

    def restart(self) -> None:
        """Let it read the folder anew, under the same address. Raises BoardError."""
        self._end()
        self._start()

    def check(self) -> None:
        """Raise BoardError where it has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise self._failed(f"ended with exit code {self._process.returncode}")

    def _start(self) -> None:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(self._folder), "--host", HOST]
        command += [
            "--port",
            str(self.port),
            "--window_title",
            self._title,
            "--samples_per_plugin",
            f"scalars={MAX_POINTS}",
        ]
        self._scratch.mkdir(exist_ok=True)
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "TMPDIR": str(self._scratch)},
                start_new_session=True,  # a terminal's Ctrl-C is ours to hear, and to end it by
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            self.check()
            if time.monotonic() > deadline:
                raise self._failed(f"gave no answer on port {self.port} for {START_SECONDS:.0f} s")
            time.sleep(0.1)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=END_SECONDS)
        try:
            connection.request("GET", "/data/environment")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)  # with the process that reads files for it
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
                break

    @property
    def _output(self) -> Path:
        return self._scratch / "output.txt"

    def _failed(self, how: str) -> GridError:
        lines = self._output.read_text(errors="replace").splitlines()
        return BoardError("\n".join([f"tensorboard: {how}", *lines[-TAIL_LINES:]]))


class BoardError(GridError):
    """TensorBoard did not start, or has ended."""

    reason = "tensorboard"


def free_port() -> int:
    """One of TensorBoard's usual ports on which nothing listens, else any other."""
    for port in range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        if not is_taken(port):
            return port
    with socket.socket() as one:
        one.bind((HOST, 0))
        port = one.getsockname()[1]
    return int(port)


def is_taken(port: int) -> bool:
    """Whether something listens on the port of this machine."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError:
            return True
    return False
