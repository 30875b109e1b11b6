"""Which vLLM tests run: the program that SMEDJE_TEST_VLLM names, or the stand-in, as a program of its own.

Read `make engines-vllm` for the first. The model is wide enough for vLLM's attention on CPUs (32 values a head).
"""

import os
import sys
from pathlib import Path

PROGRAM = os.environ.get("SMEDJE_TEST_VLLM")
HIDDEN = 128
ROOT = Path(__file__).resolve().parents[1]
# Of the real one: no compiling, which takes minutes, and little memory for keys and values.
EXTRA = ("--enforce-eager",) if PROGRAM else ()
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1"}


def vllm_program(folder: Path) -> Path:
    """The program; the stand-in is written into the folder as one."""
    if PROGRAM:
        return Path(PROGRAM).absolute()
    script = folder / "vllm"
    script.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m tests.vllm_stand_in "$@"\n')
    script.chmod(0o700)
    return script
