"""A grid's progress to draw: all that a view shows is there once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from controller.live import GridProgress, RowProgress, RunProgress, StageProgress

NOW = datetime(2026, 3, 4, 13, 30, tzinfo=UTC)
RUN = RunProgress(
    label="lr/lr=0.1 seed 0",
    doing="training",
    num_epochs=30,
    epochs_done=2.5,
    train_loss=1.23456,
    train_accuracy=0.5,
    validation_loss=1.5,
    validation_accuracy=0.4,
    images_per_second=123.4,
    seconds_left=600,
    validation_accuracies=(0.1, 0.4),
)
GRID = GridProgress(grid="demo", num_done=3, num_waiting=4, num_failed=1, running=(RUN,), later_stages=("test",))
WHOLE = GridProgress(
    grid="demo",
    num_done=8,
    num_waiting=1,
    num_failed=1,
    running=(
        replace(
            RUN,
            label="learning_rate/optimizer.lr=0.002 seed 0",
            num_epochs=10,
            epochs_done=6.4,
            validation_accuracy=0.871,
            validation_accuracies=(0.12, 0.35, 0.61, 0.78, 0.85, 0.871),
            seconds_left=95,
        ),
        RunProgress("learning_rate/optimizer.lr=0.002 seed 1", "starting", 10),
    ),
    elsewhere=("learning_rate/optimizer.lr=0.0005 seed 1: running on node-1:4711, epoch 3",),
    later_stages=("variations", "test"),
    seconds_left=1500,
    stages=(
        StageProgress(
            "network",
            False,
            0,
            6,
            num_done=6,
            kept=("architecture=resnet18",),
            rows=(
                RowProgress("architecture=shufflenet_v2_x0_5", 2, 2, 0.708, 0.021, 0.896),
                RowProgress("architecture=resnet18", 2, 2, 0.941, 0.004, 0.213, is_best=True, is_kept=True),
                RowProgress("architecture=alexnet", 2, 2, 0.102, 0.0, 2_302.6),
            ),
        ),
        StageProgress(
            "learning_rate",
            False,
            1,
            6,
            num_done=2,
            num_running=3,
            num_failed=1,
            rows=(
                RowProgress("optimizer.lr=0.0005", 1, 2, 0.9, None, 0.3),
                RowProgress("optimizer.lr=0.002", 0, 2),
                RowProgress("optimizer.lr=0.008", 1, 2, 0.8, None, 0.6),
            ),
        ),
        StageProgress("variations", False, 2, 6, waiting="for stage learning_rate to be decided"),
        StageProgress("test", True, 0, 0, waiting="for the rows of learning_rate, variations to be known"),
    ),
    failed=(("learning_rate/optimizer.lr=0.008 seed 0", "diverged: the loss was nan at epoch 3 after 2 restarts"),),
    waits=(("unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu", 1, "learning_rate/x seed 1"),),
    machines="2 processors",
    deadline=datetime(2026, 3, 4, 13, 45, tzinfo=UTC),
)
