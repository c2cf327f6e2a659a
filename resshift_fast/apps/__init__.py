"""Programs around the pipeline and bridges to other projects, each with an extra of its own."""
