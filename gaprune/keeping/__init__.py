"""Which process holds a run directory, and what it keeps there while the run goes on."""
