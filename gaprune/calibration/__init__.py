"""Calibration inputs: the inputs on which candidates are scored, made from nothing or from files.

Reading order: `parse` (what the user asked for), `auto` (what `auto` stands for), `calibration_set`
(which inputs a run uses), `generators` (procedural inputs), `inversion` (inputs optimised against
the network), `files` (inputs read from disk), `provenance` (the record of where they came from).
"""
