"""Engine processes: each holds one trainer on shared pristine weights, and does one job after the other.

Knows trainers, jobs as plain values, and a pipe. Does not know who asks, what waits, or HTTP.
"""
