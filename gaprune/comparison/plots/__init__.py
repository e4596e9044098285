"""Plots of what was measured, for people; the only place that draws (optional extra `compare`)."""
