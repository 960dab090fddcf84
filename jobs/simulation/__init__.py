"""Simulated logs: a planted signal, corrupt rows and outlier users, and the ground truth to compare a build with."""
