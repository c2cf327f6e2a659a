"""Programs over the pipeline, each a file or folder of its own, that need an extra."""
