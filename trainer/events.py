"""A run's numbers as TensorBoard reads them: the bytes of one event file, from the rows of its epochs.

The file only ever grows at its end: what it is after an epoch begins what it is after the next, so that whoever copies
it need only append, which is all that a TensorBoard that has it open takes notice of. In this order:

1. the format's version, and what the HParams tab shows of the run: its hyperparameters
2. the sample sheet, where there is one
3. a record for each epoch, with the epoch's number as its step: a run's epochs rise whatever happened to it, and are
   comparable between runs with other batches, which optimiser steps are not
4. that the run is done, after its last epoch

Records are framed here: tensorboard's own RecordWriter does the same and brings boto3 and fsspec into the process.
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

from trainer.document import flat
from trainer.failure import DataError, SpecError
from trainer.history import Epoch
from trainer.identity import run_id, with_seed
from trainer.result import EpochMetrics, TestResult
from trainer.spec import ExperimentSpec, RunSpec

SWITCH = "GRID_TENSORBOARD"

CURVES = {
    "loss/train": "train_loss",
    "loss/validation": "validation_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "validation_accuracy",
    "accuracy/validation_balanced": "validation_balanced_accuracy",
    "accuracy/validation_top5": "validation_top5_accuracy",
    "training/learning_rate": "lr",
    "training/optimizer_steps": "step",
    "training/restarts": "restarts",
    "training/images_per_second": "images_per_second",
    "training/seconds": "seconds",
}
"""The field of an epoch's row by the name of its curve."""

RETURNS = "training/returns_to_best"
BEST = (
    "validation_accuracy",
    "validation_balanced_accuracy",
    "validation_top5_accuracy",
    "validation_loss",
    "train_accuracy",
    "train_loss",
    "epoch",
)
"""Fields of the best epoch so far, drawn as `best/<field>`: each ends in what the table shows."""

TESTED = ("test_accuracy", "test_balanced_accuracy", "test_top5_accuracy", "test_loss")
"""Fields of a test, as `test/<field>`."""

SHEET_TAG = "images/training_as_seen"
SHEET_IMAGES, SHEET_COLUMNS, TILE = 16, 4, 128  # TILE: longest side of one image on the sheet, pixels
SHEET_QUALITY = 90  # of its JPEG

UNTOLD = ("recipe.", "checkpoint.", "data.fingerprint", "model.source_hash", "model.weights_fingerprint")
"""Beginnings of the spec's keys that no one compares runs by; the seed is left out too, for runs of an experiment
share a row."""

PLUGIN = "hparams"
SESSION_TAG = "_hparams_/session_start_info"
END_TAG = "_hparams_/session_end_info"
EXPERIMENT_TAG = "_hparams_/experiment"

Value = bool | float | str


def events_key(run: str) -> str:
    """Where the run's event file lives: TensorBoard takes any folder of files named `*tfevents*`."""
    return f"runs/{run}/tensorboard/events.out.tfevents.0.{run}"


def are_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment lets a run write its event file; it does unless GRID_TENSORBOARD is off."""
    said = environment.get(SWITCH, "on")
    if said not in ("on", "off"):
        raise SpecError(f"{SWITCH}: got {said!r}, expected on or off", hint="unset, it is on")
    return said == "on"


def event_file(spec: RunSpec, epochs: Iterable[Epoch], sheet: bytes | None = None) -> bytes:
    """The event file of a run after these epochs, in their order; empty before the first. `sheet` is a JPEG."""
    file = EventFile(spec, sheet)
    for epoch in epochs:
        file.add(epoch)
    return file.data


class EventFile:
    """A run's event file as it grows epoch by epoch."""

    def __init__(self, spec: RunSpec, sheet: bytes | None = None) -> None:
        self._spec = spec
        self._sheet = sheet
        self._best: EpochMetrics | None = None
        self._num_returns = 0
        self._time = 0.0
        self._data = bytearray()

    @property
    def data(self) -> bytes:
        """The file so far."""
        return bytes(self._data)

    def add(self, epoch: Epoch) -> None:
        """Let it grow by an epoch, which comes after those that it has."""
        row = epoch.metrics
        if not self._data:
            self._data += _beginning(self._spec, epoch.time - row.seconds, self._sheet)
        self._time = max(self._time, epoch.time)  # times of two attempts are worked out apart
        self._best = row if row.best else self._best
        self._num_returns += row.returned_to_best
        values = {tag: getattr(row, field) for tag, field in CURVES.items()}
        values[RETURNS] = self._num_returns
        if self._best is not None:
            values |= {f"best/{field}": getattr(self._best, field) for field in BEST}
        self._data += _record(self._time, row.epoch, [_scalar(tag, value) for tag, value in values.items()])
        if row.epoch == self._spec.epochs:
            end = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=self._time)
            self._data += _record(self._time, 0, [_hparams(END_TAG, HParamsPluginData(session_end_info=end))])


def record_of_test(test: TestResult, epoch: Epoch) -> bytes:
    """What follows in the event file of a run that is done and tested; `epoch` is its best."""
    values = [_scalar(f"test/{field}", getattr(test, field)) for field in TESTED]
    return _record(epoch.time, epoch.metrics.epoch, values)


def _beginning(spec: RunSpec, started: float, sheet: bytes | None) -> bytes:
    session = SessionStartInfo(group_name=run_id(with_seed(spec, 0)), start_time_secs=started)
    for name, value in hyperparameters(spec).items():
        if isinstance(value, bool):
            session.hparams[name].bool_value = value
        elif isinstance(value, str):
            session.hparams[name].string_value = value
        else:
            session.hparams[name].number_value = value
    data = _framed(Event(wall_time=started, file_version="brain.Event:2").SerializeToString())
    data += _record(started, 0, [_hparams(SESSION_TAG, HParamsPluginData(session_start_info=session))])
    if sheet is not None:
        data += _record(started, 1, [_image(SHEET_TAG, sheet)])
    return data


def hyperparameters(spec: ExperimentSpec) -> dict[str, Value]:
    """What runs may be compared by, by dotted key; lists as JSON, and nothing for what is not set."""
    values = spec.model_dump(mode="json", by_alias=True, exclude={"seed"})
    return {
        key: value if isinstance(value, bool | str) else json.dumps(value) if isinstance(value, list) else float(value)
        for key, value in flat(values)
        if value not in (None, {}) and not key.startswith(UNTOLD)
    }


def experiment_file(rows: Sequence[Mapping[str, Value]], *, is_tested: bool, time: float) -> bytes:
    """The event file that says what the HParams tab is to show of runs with these hyperparameters.

    Columns are what differs between them, and then the numbers of the table; `is_tested` adds those of tests. It
    belongs into the folder that holds theirs.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [column for name in names if (column := _column(name, rows)) is not None]
    numbers = [f"best/{field}" for field in BEST] + ([f"test/{field}" for field in TESTED] if is_tested else [])
    metrics = [
        MetricInfo(name=MetricName(tag=tag), display_name=tag.partition("/")[2].replace("_", " ")) for tag in numbers
    ]
    experiment = Experiment(hparam_infos=columns, metric_infos=metrics, time_created_secs=time)
    version = Event(wall_time=time, file_version="brain.Event:2").SerializeToString()
    return _framed(version) + _record(time, 0, [_hparams(EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))])


def _column(name: str, rows: Sequence[Mapping[str, Value]]) -> HParamInfo | None:
    """The column of a hyperparameter; none where all rows have the same, or values of unlike kinds."""
    values = [row[name] for row in rows if name in row]
    if len(set(values)) == 1 and len(values) == len(rows):
        return None
    column = HParamInfo(name=name, differs=True)
    if all(isinstance(value, bool) for value in values):
        column.type = DATA_TYPE_BOOL
        column.domain_discrete.extend(sorted(set(values)))
    elif all(isinstance(value, str) for value in values):
        column.type = DATA_TYPE_STRING
        column.domain_discrete.extend(sorted(set(values)))
    elif all(isinstance(value, float) for value in values):
        column.type = DATA_TYPE_FLOAT64
        column.domain_interval.min_value, column.domain_interval.max_value = min(values), max(values)
    else:  # the tab's filters would drop the rows whose kind is not the column's
        return None
    return column


def in_group(data: bytes, group: str) -> bytes:
    """The event file with another name of the row in which the HParams tab gathers the run with its like.

    Raises DataError where `data` is no event file of a run.
    """
    records = list(islice(_records(data), 2))
    event = _parsed(records[1][0]) if len(records) == 2 else None
    if event is None or not event.summary.value or event.summary.value[0].tag != SESSION_TAG:
        raise DataError(
            f"event file: got {len(data)} bytes that do not begin as a run's",
            hint="remove the object: what it holds is made from the run's metrics then",
        )
    plugin = event.summary.value[0].metadata.plugin_data
    told = HParamsPluginData.FromString(plugin.content)
    told.session_start_info.group_name = group
    plugin.content = told.SerializeToString()
    (_, first_end), (_, second_end) = records
    return data[:first_end] + _framed(event.SerializeToString()) + data[second_end:]


def sheet_of(images_NHWC: npt.NDArray[np.uint8]) -> bytes:
    """The images in rows of SHEET_COLUMNS, as a JPEG; none is larger than TILE pixels a side."""
    num, height, width, _ = images_NHWC.shape
    shrunk = min(1.0, TILE / max(height, width))
    size = (max(1, round(width * shrunk)), max(1, round(height * shrunk)))
    columns = min(SHEET_COLUMNS, num)
    sheet = Image.new("RGB", (columns * (size[0] + 2) - 2, -(-num // columns) * (size[1] + 2) - 2), "white")
    for number, image_HWC in enumerate(images_NHWC):
        row, column = divmod(number, columns)
        tile = Image.fromarray(image_HWC).resize(size, Image.Resampling.LANCZOS)
        sheet.paste(tile, (column * (size[0] + 2), row * (size[1] + 2)))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=SHEET_QUALITY)
    return out.getvalue()


def _record(time: float, step: int, values: Sequence[Summary.Value]) -> bytes:
    return _framed(Event(wall_time=time, step=step, summary=Summary(value=values)).SerializeToString())


def _scalar(tag: str, value: float) -> Summary.Value:
    return Summary.Value(tag=tag, simple_value=value)


def _image(tag: str, jpeg: bytes) -> Summary.Value:
    width, height = Image.open(io.BytesIO(jpeg)).size
    seen = f"the first {SHEET_IMAGES} training images of epoch 1, augmented and cropped as the network gets them"
    return Summary.Value(
        tag=tag,
        image=Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=jpeg),
        metadata=SummaryMetadata(summary_description=seen),
    )


def _hparams(tag: str, data: HParamsPluginData) -> Summary.Value:
    nothing = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=data.SerializeToString())
    return Summary.Value(tag=tag, tensor=nothing, metadata=SummaryMetadata(plugin_data=plugin))


# Framing: length, its checksum, data, its checksum


def _framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _checksum(length)) + data + struct.pack("<I", _checksum(data))


def _records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """What the whole records of an event file hold, without a look at checksums; and where each ends."""
    at = 0
    while len(data) - at >= 12:
        end = at + 16 + int.from_bytes(data[at : at + 8], "little")
        if end > len(data):
            return
        yield data[at + 12 : end - 4], end
        at = end


def _parsed(data: bytes) -> Event | None:
    try:
        return Event.FromString(data)
    except DecodeError:
        return None


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def _checksum(data: bytes) -> int:
    """CRC-32C, turned and shifted as records have it."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
