"""The parts of scripts/gpu_acceptance.py: its table of steps, how one is run, where, and what is written of it."""
