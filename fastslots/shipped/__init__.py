"""How the models of the package were made: ``python -m fastslots.shipped NAME`` makes one again."""
