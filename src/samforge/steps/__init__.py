"""What each step of a build does, and the comparison that proves it; one file a step.

A step takes files that earlier steps left in the staging folder and leaves its own, so every one
of them can be resumed. The order is :mod:`samforge.pipeline`'s.
"""
