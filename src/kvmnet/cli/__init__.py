"""The command line. It is loaded by short-lived processes, which the garbage collector shall not hold up by walking tens of thousands of living
objects again and again: its threshold is high before anything else is loaded."""
import gc

gc.set_threshold(200_000, 20, 20)
