"""A program that a test ends from outside."""

# The program with tiny models, which hangs in the third photo. It sets the handler of SIGINT, because a shell's
# background jobs ignore the signal and their children inherit that.
PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import tiny_models
from resshift_fast import cli
from resshift_fast.pipeline import Pipeline
tiny_models.install()
call, calls = Pipeline.__call__, []
def slow(self, *arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        print("third", file=sys.stderr, flush=True)
        time.sleep(120)
    return call(self, *arguments, **options)
Pipeline.__call__ = slow
cli.main()
"""
