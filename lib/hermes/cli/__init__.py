"""The command ``hermes``: segment images, browse the labels, import published weights."""

from hermes.cli.command import main

__all__ = ["main"]
