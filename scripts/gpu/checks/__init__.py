"""Stages that tell whether results are right."""
