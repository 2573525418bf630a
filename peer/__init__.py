"""One running device: store, executor, daemon, local API, client and command line."""
