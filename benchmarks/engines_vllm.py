"""The promises of an engine, tried on vLLM itself: python benchmarks/engines_vllm.py, or make engines-vllm.

Makes vLLM's CPU build an environment of its own (several GB, once; --program names another vLLM instead) and runs the
engine contract, its processes and a whole server against it: the tests that the suite runs against a stand-in.
About five minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from serve_cpu_servers import environment

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/contract/test_engine_vllm.py", "tests/contract/test_vllm_worker.py", "tests/e2e/test_vllm_server.py")


def main() -> int:
    """Run the tests; what is not known here goes to pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, help="a vLLM program, in place of an environment of its own")
    options, rest = parser.parse_known_args()
    program = options.program or environment("vllm") / "vllm"
    command = [sys.executable, "bootstrap.py", "test", *TESTS, "-n0", "-s", "--durations=10", "--timeout", "900", *rest]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "SMEDJE_TEST_VLLM": str(program)}).returncode


if __name__ == "__main__":
    raise SystemExit(main())
