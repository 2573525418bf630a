"""The shared memory of one device: its rows, its index, and what users ask of it."""
