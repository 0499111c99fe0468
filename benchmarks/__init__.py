"""Carteiro, a bare loop and a peer, side by side in one run: `python -m benchmarks`.

    contestants/    what is measured: each worker and each publisher runs as a process of its own
    measurements/   one file each: which contestants, how many messages, which ratios, and what DESIGN asks of them

A machine is never quiet, so contestants take turns for several rounds, a ratio is taken within a round, and what is
shown is the median of the rounds. Rates are shown with the CPU time that a message took, which other load changes less.
"""
