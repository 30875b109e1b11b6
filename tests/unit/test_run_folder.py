"""The run folder: what the planes say to each other arrives whole, in order and once."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smedje.domain.runs import Control, Outcome, RunEvent, RunResult
from smedje.errors import Conflict, NotFound
from smedje.executors.local import LocalExecutor
from smedje.objects.run_folder import RunFolder
from smedje.objects.store import Objects, open_objects


@pytest.fixture(params=["file", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """Empty storage of each kind."""
    return open_objects(tmp_path.as_uri() if request.param == "file" else "memory:///")


def step(number: int) -> RunEvent:
    """An event like those of training."""
    return RunEvent(kind="step", at=1700000000.25 + number, data={"step": number, "loss": 1.5, "lr": 1e-4})


def test_a_spec_arrives(objects: Objects) -> None:
    """The worker reads the bytes that were written; another run's spec is not found."""
    RunFolder(objects, "run-1").write_spec(b'{"a": 1}')
    assert RunFolder(objects, "run-1").read_spec() == b'{"a": 1}'
    with pytest.raises(NotFound):
        RunFolder(objects, "run-2").read_spec()


def test_events_arrive_in_order_and_once(objects: Objects) -> None:
    """Reading from the cursor gives exactly what came since; a cursor at the end stands still."""
    worker, server = RunFolder(objects, "run-1"), RunFolder(objects, "run-1")
    assert server.read_events("") == ([], "")
    worker.emit([step(1), step(2)])
    worker.emit([])
    worker.emit([step(3)])
    events, cursor = server.read_events("")
    assert events == [step(1), step(2), step(3)]
    assert server.read_events(cursor) == ([], cursor)
    worker.emit([step(4)])
    assert server.read_events(cursor)[0] == [step(4)]


def test_many_events_come_in_portions(objects: Objects) -> None:
    """However many objects there are, following the cursor yields each event once."""
    worker, server = RunFolder(objects, "run-1"), RunFolder(objects, "run-1")
    for number in range(600):
        worker.emit([step(number)])
    seen, cursor, rounds = [], "", 0
    while True:
        events, cursor = server.read_events(cursor)
        if not events:
            break
        seen += events
        rounds += 1
    assert seen == [step(number) for number in range(600)]
    assert rounds == 3


def test_a_worker_that_comes_back_goes_on(objects: Objects) -> None:
    """A new RunFolder continues the numbering, so nothing is written over."""
    RunFolder(objects, "run-1").emit([step(1)])
    RunFolder(objects, "run-1").emit([step(2)])
    assert RunFolder(objects, "run-1").read_events("")[0] == [step(1), step(2)]


def test_two_workers_cannot_both_write(objects: Objects) -> None:
    """A worker thought dead that thaws finds its place taken and must stop; its events are not mixed in."""
    frozen, successor = RunFolder(objects, "run-1"), RunFolder(objects, "run-1")
    frozen.emit([step(1)])
    successor.emit([step(2)])
    with pytest.raises(Conflict) as caught:
        frozen.emit([step(99)])
    assert caught.value.code == "run_folder_taken"
    assert RunFolder(objects, "run-1").read_events("")[0] == [step(1), step(2)]


TEXTS = st.text(max_size=20)
VALUES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS
EVENTS = st.builds(
    RunEvent,
    kind=st.sampled_from(["step", "message", "resolved"]),
    at=st.floats(min_value=0, max_value=2e9),
    message=TEXTS,
    data=st.dictionaries(TEXTS, VALUES, max_size=3),
)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=4))
def test_any_event_survives_the_trip(events: list[RunEvent]) -> None:
    """Line breaks of every kind, NUL and emoji in an event change neither it nor its neighbours."""
    folder = RunFolder(open_objects("memory:///"), "run-1")
    folder.emit(events)
    assert folder.read_events("")[0] == events


def test_numbers_that_json_lacks_become_null(objects: Objects) -> None:
    """A loss of NaN or infinity arrives as None, never as a broken line."""
    folder = RunFolder(objects, "run-1")
    folder.emit([RunEvent(kind="step", at=1.0, data={"loss": float("nan"), "norm": float("inf")})])
    assert folder.read_events("")[0][0].data == {"loss": None, "norm": None}


@pytest.mark.parametrize("torn", [b"", b'{"kind":"st', b"\x00\x00\x00\x00", b"[]", b'{"outcome":"unheard-of"}'])
def test_torn_objects_stop_nothing(objects: Objects, torn: bytes) -> None:
    """Objects damaged by hands or disks: a bad event line is reported in its place, a bad result counts as none."""
    folder = RunFolder(objects, "run-1")
    folder.emit([step(1)])
    objects.put("runs/run-1/events/0000000001.jsonl", torn)
    objects.put("runs/run-1/heartbeat.json", torn)
    objects.put("runs/run-1/result.json", torn)
    events, cursor = folder.read_events("")
    assert events[0] == step(1)
    assert [event.level for event in events[1:]] == (["warn"] if torn else [])
    assert cursor == "0000000001"
    assert folder.read_heartbeat() in (None, {"outcome": "unheard-of"})
    assert folder.read_result() is None


def test_a_heartbeat_is_replaced(objects: Objects) -> None:
    """Only the last one is there to read."""
    folder = RunFolder(objects, "run-1")
    assert folder.read_heartbeat() is None
    folder.heartbeat({"at": 1.5, "step": 1})
    folder.heartbeat({"at": 2.5, "step": 2})
    pulse = folder.read_heartbeat()
    assert pulse is not None
    assert (pulse["at"], pulse["step"]) == (2.5, 2)


def test_a_heartbeat_says_which_process_it_is(objects: Objects) -> None:
    """A server that never learnt the handle of a worker finds it by its heartbeat."""
    folder = RunFolder(objects, "run-1")
    folder.heartbeat({"at": 1.5})
    pulse = folder.read_heartbeat()
    assert pulse is not None
    assert LocalExecutor().alive(pulse)
    assert not LocalExecutor().alive({**pulse, "started": "another boot:1"})


def test_a_cancel_outranks_a_pause(objects: Objects) -> None:
    """Whatever the order of asking, a cancel is not undone; asking twice is the same as once."""
    for order in ([Control.PAUSE, Control.CANCEL], [Control.CANCEL, Control.PAUSE, Control.CANCEL]):
        folder = RunFolder(objects, f"run-{len(order)}")
        assert folder.requested() is None
        for control in order:
            folder.request(control)
        assert folder.requested() is Control.CANCEL
    only = RunFolder(objects, "run-only")
    only.request(Control.PAUSE)
    assert only.requested() is Control.PAUSE


def test_a_result_is_said_once(objects: Objects) -> None:
    """The first result stands; repeating it is fine, another is refused."""
    folder = RunFolder(objects, "run-1")
    assert folder.read_result() is None
    result = RunResult(outcome=Outcome.SUCCEEDED, step=10, data={"trained_tokens": 5})
    folder.write_result(result)
    folder.write_result(result)
    with pytest.raises(Conflict):
        folder.write_result(RunResult(outcome=Outcome.FAILED, error_code="x"))
    assert folder.read_result() == result


def test_prefixes_sort_by_step_and_delete_goes_with_the_run(objects: Objects) -> None:
    """Later steps sort later; deleting a run's folder leaves other runs alone."""
    one, ten = RunFolder(objects, "run-1"), RunFolder(objects, "run-10")
    assert one.checkpoint_prefix(9) < one.checkpoint_prefix(10) < one.checkpoint_prefix(123456)
    assert one.state_prefix(1) != one.checkpoint_prefix(1)
    objects.put(f"{one.checkpoint_prefix(5)}/adapter.safetensors", b"w")
    one.write_spec(b"{}")
    ten.write_spec(b"{}")
    one.delete()
    assert [info.key for info in objects.list("")] == ["runs/run-10/spec.json"]


def test_a_worker_killed_at_any_moment_leaves_whole_events(tmp_path: Path) -> None:
    """A process killed -9 while it writes events leaves an unbroken beginning of them and no half line."""
    program = (
        "from smedje.objects.store import open_objects\nfrom smedje.objects.run_folder import RunFolder\n"
        "from smedje.domain.runs import RunEvent\n"
        f"folder = RunFolder(open_objects({tmp_path.as_uri()!r}), 'run-1')\nn = 0\n"
        "while True:\n"
        "    folder.emit([RunEvent(kind='step', at=0.0, data={'step': n + i, 'pad': 'x' * 20000}) for i in range(3)])\n"
        "    n += 3\n    print(n, flush=True)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    for _ in range(20):
        said = int(worker.stdout.readline())
    worker.kill()
    worker.wait()
    worker.stdout.close()
    events, _ = RunFolder(open_objects(tmp_path.as_uri()), "run-1").read_events("")
    assert [event.data["step"] for event in events] == list(range(len(events)))
    assert len(events) >= said
