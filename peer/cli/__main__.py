"""`python -m covey.peer.cli`."""

from .group import main

main()
