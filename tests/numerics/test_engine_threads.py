"""An engine process keeps one team of compute threads, that of its steps."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, time, torch
from smedje.serving.worker import compute_threads

def threads(): return len(os.listdir("/proc/self/task"))
def work(): torch.ones(1024, 1024) @ torch.ones(1024, 1024)

torch.set_num_threads({cores})  # makes a pool of another library, which stays
before = threads()
with compute_threads({cores}) as pool:
    pool.submit(work).result()
    most = threads() - before
end = time.monotonic() + 20
while threads() > before and time.monotonic() < end:
    time.sleep(0.01)
print(most, threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads that Linux tells")
@pytest.mark.parametrize("cores", [1, 2])
def test_threads_that_load_leave_no_team_behind(cores: int) -> None:
    """One that computes on two cores has others with it while it lives; on one core it is alone."""
    program = PROGRAM.format(cores=cores)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    most, left = map(int, done.stdout.split())
    assert (most > 1) == (cores > 1)
    assert left == 0
