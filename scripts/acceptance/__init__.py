"""The parts of scripts/gpu_acceptance.py: the table of steps, how and where one is run, and the result file."""
