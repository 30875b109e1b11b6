"""What every use case needs: database, object storage, state folder, clock. Knows nothing of settings or HTTP."""

import threading
import time
from collections import deque
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass, field
from pathlib import Path

from smedje.domain.audit import Actor
from smedje.objects.store import Objects
from smedje.services.outbound import Outbound
from smedje.store.database import Database

# Of a context that serves no request, where they are only the newest.
MOST_NOTICES = 16


@dataclass(frozen=True, kw_only=True)
class Context:
    """The resources that services share.

    home: state folder; installed base models lie below it. now: Unix seconds with fraction.
    actor: on whose behalf; the server's own unless a request says otherwise.
    location: the compute target that this server speaks for. device: what its jobs train on, "cpu" or "cuda".
    notices: what the caller of this request should hear beside the answer; nobody reads the server's own.
    outbound: which addresses that users give may be reached; none unless said otherwise.
    wake: set when a job wants the scheduler's attention, so that nobody waits for its next look.
    """

    database: Database
    objects: Objects
    home: Path
    now: Callable[[], float] = time.time
    actor: Actor = field(default_factory=Actor)
    location: str = "local"
    device: str = "cpu"
    notices: MutableSequence[str] = field(default_factory=lambda: deque(maxlen=MOST_NOTICES))
    outbound: Outbound = field(default_factory=Outbound)
    wake: threading.Event = field(default_factory=threading.Event)

    def seconds(self) -> int:
        """The time as rows keep it: whole Unix seconds."""
        return int(self.now())
