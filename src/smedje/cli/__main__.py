"""`python -m smedje.cli`: the same as the `smedje` command, where only the interpreter is known."""

from smedje.cli.main import main

main()
