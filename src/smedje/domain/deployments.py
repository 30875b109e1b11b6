"""Deployments: a name under which a model serves traffic."""

from dataclasses import dataclass
from enum import StrEnum


class DeploymentStatus(StrEnum):
    """`ready` means that a request would be answered, if need be after the engine wakes."""

    CREATING = "creating"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A named deployment of a base model, a fine-tuned model or one of its checkpoints.

    model: the name that was deployed. adapter_key: object-storage prefix of the adapter, None for a base model.
    """

    id: str
    project_id: str
    name: str
    model: str
    base_model: str
    adapter_key: str | None
    status: DeploymentStatus
    created_at: int
    error: str | None = None
