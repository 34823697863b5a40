"""The models, and what they share: modes, precision, files."""
