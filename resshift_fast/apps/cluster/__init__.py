"""Restoring the photos of folders and object stores on the machines of a Ray cluster, with Ray Data."""
