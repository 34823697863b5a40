"""How errors are passed on."""

SAID_BY_MAIN = "the main process says so too"
"""A note on an error that the main process of several has raised as well: one of them is enough to print."""
