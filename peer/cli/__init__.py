"""The command line: `covey`. Starts fast: no command imports trio or libp2p unless it runs them."""

from .group import main

__all__ = ["main"]
