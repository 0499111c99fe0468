"""Carteiro, a bare loop and its peers, side by side in one run: `python -m benchmarks`.

    systems/        what they run on, one file each: how it is started, who is measured there, what DESIGN asks
    contestants/    who is measured, a program each: its workers and its publisher run as processes of their own
    measurements/   what is measured, one file each, the same on every system

A machine is never quiet, so contestants take turns for several rounds, a ratio is taken within a round, and what is
shown is the median of the rounds. Rates are shown with the CPU time that a message took, which other load changes less.
"""
