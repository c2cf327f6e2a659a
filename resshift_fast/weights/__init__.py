"""Weights files: what is published, downloading and reading, and the embedded model's file."""
