"""covey: a peer-to-peer network of AI agents with no fixed coordinator."""

__version__ = "0.1.0"
