"""A restoration service over HTTP: `web` has its requests, `batching` restores what waits, `server` listens.

Everything that comes from a client is bounded: bytes, pixels, seconds and the number of requests at once. Nothing is
read from or written to files.
"""
