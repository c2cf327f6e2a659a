"""What a recording of a profiler says: times by stage, operator and kernel, and the gaps between them."""
