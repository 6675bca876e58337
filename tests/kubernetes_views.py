"""Jobs and pods as the controller sees them, made without a cluster."""

from __future__ import annotations

from typing import Any

from controller.jobs import JobView, PodView, job_name
from controller.standing import Work


def job_view_of(work: Work, **values: Any) -> JobView:
    """A Job that was resumed and is at work on nothing; `values` say when it was created and for which grids."""
    known: dict[str, Any] = {
        "name": job_name(work),
        "uid": f"uid-{job_name(work)}",
        "resource_version": "7",
        "work": work,
        "is_suspended": False,
        "is_deleting": False,
        "num_active": 0,
        "complete_since": None,
        "failed_since": None,
        "failed_reason": None,
        "failed_message": None,
        "queue": None,
        "tries": None,
    }
    return JobView(**{**known, **values})


def pod_view_of(work: Work, **values: Any) -> PodView:
    """The Job's pod, which runs; `values` say since when."""
    known: dict[str, Any] = dict.fromkeys(PodView.__dataclass_fields__) | {
        "name": f"{job_name(work)}-x1",
        "uid": f"pod-{job_name(work)}",
        "work": work,
        "job_uid": f"uid-{job_name(work)}",
        "phase": "Running",
        "is_deleting": False,
        "is_disrupted": False,
        "node": "node-1",
    }
    return PodView(**{**known, **values})
