"""Thinking locally: engines, model files, supervised workers and the built-in skills."""
