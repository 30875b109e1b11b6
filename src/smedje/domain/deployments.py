"""Deployments: a name under which a model serves traffic, perhaps with a second model for a share of it."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum


class DeploymentStatus(StrEnum):
    """`ready` means that a request would be answered, if need be after the engine wakes."""

    CREATING = "creating"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class KeySlot(StrEnum):
    """A deployment's two keys: clients move to one while the other is made anew."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that answers. model: the name that was deployed. adapter_key: object-storage prefix of its adapter, None
    for a base model."""

    model: str
    base_model: str
    adapter_key: str | None


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A second model that answers this percentage of a deployment's requests, 1 to 99."""

    served: Served
    percent: int


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A named deployment of a base model, a fine-tuned model or one of its checkpoints.

    model, base_model, adapter_key: what answers, as in Served. revision: counts its models from 1.
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
    revision: int = 1
    canary: Canary | None = None

    @property
    def main(self) -> Served:
        """The model that answers, the canary's share apart."""
        return Served(model=self.model, base_model=self.base_model, adapter_key=self.adapter_key)


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A model that a deployment has answered with."""

    number: int
    model: str
    created_at: int


def answering(deployment: Deployment, caller: str) -> Served:
    """Which of a deployment's models answers this caller: always the same one while the deployment does not change.

    caller: what is to stay with one model, such as a user's id; for a single request, anything random.
    """
    canary = deployment.canary
    if canary is None:
        return deployment.main
    digest = hashlib.sha256(f"{deployment.id}/{deployment.revision}/{caller}".encode()).digest()
    return canary.served if int.from_bytes(digest[:8]) % 100 < canary.percent else deployment.main
