"""A process that is ready before there is a run: `python -m smedje.training.warm --model-folder F ...` by the server.

It imports everything, reads the base model, says so, and then turns every order on standard input (a socket) into a
training worker by forking. It computes nothing and touches no object storage itself, because neither compute threads
nor that library's threads survive a fork; so a worker made this way is as a freshly started one, but for what is in
memory already. It ends when the socket does: with its server. Workers made here are in sessions of their own and go on.
"""

import argparse
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import torch

# Not used here: in memory before the first order comes.
import smedje.training.checkpoint
import smedje.training.loop
import smedje.training.run  # noqa: F401
from smedje.domain.runs import WORKER_NAME, WorkerAnswer, WorkerOrder
from smedje.training import worker
from smedje.training.optimizer import make_optimizer
from smedje.training.resident import Resident, load_resident
from smedje.training.spec import OptimizerSpec

log = logging.getLogger("smedje.training")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve orders until the socket closes."""
    parser = argparse.ArgumentParser(prog="smedje.training.warm")
    parser.add_argument("--model-folder", required=True, type=Path, help="the base model to hold in memory")
    parser.add_argument("--objects", required=True, help="object storage URL")
    parser.add_argument("--cache", required=True, type=Path, help="folder for copies of remote objects")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # Reading weights would start compute threads, which a forked process does not have.
    torch.set_num_threads(1)
    resident = _resident(arguments.model_folder)
    # The first optimizer of a process imports as much as torch itself, three quarters of a second.
    make_optimizer([torch.nn.Parameter(torch.zeros(1))], OptimizerSpec())
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, lambda number, frame: _reap())
    orders = socket.socket(fileno=os.dup(0))
    orders.sendall(msgspec.json.encode(WorkerAnswer()) + b"\n")
    with suppress(ConnectionError), orders.makefile("rb") as lines:
        for line in lines:
            order = msgspec.json.decode(line, type=WorkerOrder)
            child = os.fork()
            if child == 0:
                orders.detach()
                _work(order, resident, ["--objects", arguments.objects, "--cache", str(arguments.cache)])
            orders.sendall(msgspec.json.encode(WorkerAnswer(run=order.run, pid=child)) + b"\n")
    return 0


def _resident(folder: Path) -> Resident | None:
    """The base model, or None when it cannot be read: each run then reads it and says what is wrong."""
    try:
        return load_resident(folder)
    except Exception:
        log.exception("the base model was not read")
        return None


def _work(order: WorkerOrder, resident: Resident | None, options: list[str]) -> None:
    """Be a worker, in a session of its own, and end with the process."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        descriptor = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        with suppress(OSError):
            Path("/proc/self/comm").write_text(WORKER_NAME)
        status = worker.main([*options, "--run", order.run], resident=resident)
    except BaseException:
        log.exception("the worker failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    sys.exit(main())
