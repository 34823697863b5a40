"""The command line: ``fastslots COMMAND``, or ``python -m fastslots COMMAND``."""
