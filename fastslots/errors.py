"""How errors are passed on."""

SAID_BY_MAIN = "the main process says so too"
"""A note on an error that the main process of several has raised as well: one of them is enough to print."""

INTERRUPTED = "fastslots: interrupted"
"""What a command says that Ctrl-C ended and that has nothing to go on with."""
