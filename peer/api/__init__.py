"""The local API: HTTP on a Unix socket and on loopback TCP."""
