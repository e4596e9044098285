"""Input generators: one file per kind of input, and how their outputs are mixed."""
