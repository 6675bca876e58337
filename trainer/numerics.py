"""How a run is computed: settled once by its first attempt, obeyed by every later one."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.failure import OtherNumerics
from trainer.result import Numerics
from trainer.spec import ExperimentSpec

# what this attempt cannot choose: it has this device, this processor and this torch, or it has another
GIVEN = ("device", "device_model", "instruction_set", "torch_version")


def pick_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def settle(spec: ExperimentSpec, device: torch.device, threads: int) -> Numerics:
    """The numerics that a first attempt at `spec` takes on `device` with `threads` CPU threads."""
    return Numerics(
        precision=_precision(spec, device),
        threads=threads,
        micro_batch=spec.micro_batch or spec.batch_size,
        memory_format="channels_last",
        compile=spec.compile,
        deterministic=spec.deterministic,
        device=device.type,
        device_model=_device_model(device),
        instruction_set=_instruction_set(device),
        torch_version=torch.__version__,
    )


def obeyed(settled: Numerics, device: torch.device, *, exact: bool) -> Numerics:
    """`settled` as this attempt can obey it: itself, or with `exact` false what this machine gives instead.

    Raises OtherNumerics when this machine computes otherwise than the first attempt's and `exact` is true.
    """
    here = settled.model_copy(
        update={
            "device": device.type,
            "device_model": _device_model(device),
            "instruction_set": _instruction_set(device),
            "torch_version": torch.__version__,
        }
    )
    differs = [f"{n} was {getattr(settled, n)!r}, is {getattr(here, n)!r}" for n in GIVEN if _differ(settled, here, n)]
    if differs and exact:
        raise OtherNumerics(
            f"numerics: this machine cannot go on with the same numbers: {'; '.join(differs)}",
            hint="go on where the run began, or pass --resume inexact: the result then says `exact: false`",
        )
    return here


def _differ(settled: Numerics, here: Numerics, name: str) -> bool:
    return bool(getattr(settled, name) != getattr(here, name))


def apply(numerics: Numerics) -> None:
    """Set this process's torch to compute by `numerics`."""
    torch.set_num_threads(numerics.threads)
    torch.backends.cuda.matmul.allow_tf32 = numerics.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = numerics.precision == "tf32"
    torch.backends.cudnn.benchmark = False
    if numerics.deterministic:  # https://docs.nvidia.com/cuda/cublas/#results-reproducibility
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(numerics.deterministic)
    torch.backends.cudnn.deterministic = numerics.deterministic
    # nothing here reads memory before it writes it, so filling it would only cost time
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - a property set on a module


class RepeatablePool(nn.Module):
    """nn.AdaptiveAvgPool2d by products with matrices: its own gradient on CUDA adds in an order that changes.

    torch refuses that in deterministic mode, and with it AlexNet and VGG: https://github.com/pytorch/pytorch/issues/50198.
    """

    def __init__(self, size: int | tuple[int | None, int | None] | None) -> None:
        super().__init__()
        self.rows, self.columns = size if isinstance(size, tuple) else (size, size)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Means over as many stretches of rows and columns; an axis that has just as many stays as it is."""
        if self.rows not in (None, images_BCHW.shape[-2]):
            images_BCHW = _means(images_BCHW, -2, self.rows) @ images_BCHW
        if self.columns not in (None, images_BCHW.shape[-1]):
            images_BCHW = images_BCHW @ _means(images_BCHW, -1, self.columns).T
        return images_BCHW


def _means(images_BCHW: Tensor, axis: int, size: int | None) -> Tensor:
    """The matrix (size, length) that averages the axis over `size` stretches, which share what they do not divide."""
    assert size is not None
    length, device = images_BCHW.shape[axis], images_BCHW.device
    numbers, places = torch.arange(size, device=device)[:, None], torch.arange(length, device=device)
    begins, ends = numbers * length // size, ((numbers + 1) * length + size - 1) // size
    return ((places >= begins) & (places < ends)).to(images_BCHW.dtype) / (ends - begins)


def make_repeatable(module: nn.Module) -> None:
    """Replace the layers of `module` that CUDA cannot compute twice alike and that can be computed otherwise."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # a mean over everything is no such layer: torch computes it as a mean
            if type(child) is nn.AdaptiveAvgPool2d and child.output_size not in (1, (1, 1)):
                setattr(parent, name, RepeatablePool(child.output_size))


def _precision(spec: ExperimentSpec, device: torch.device) -> str:
    if spec.precision == "tf32" and device.type == "cpu":
        return "fp32"  # a CPU has no tf32
    if spec.precision != "auto":
        return spec.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if _has_amx_bf16() else "fp32"


def _has_amx_bf16() -> bool:
    # measured: bf16 is three times as fast as fp32 with AMX, and slower than fp32 with AVX512-BF16 alone
    return "amx_bf16" in _cpuinfo("flags").split()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _device_model(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instruction_set(device: torch.device) -> str:
    if device.type == "cuda":
        return ".".join(str(part) for part in torch.cuda.get_device_capability(device))
    return torch.backends.cpu.get_cpu_capability() + ("+AMX" if _has_amx_bf16() else "")
