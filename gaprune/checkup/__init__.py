"""Does gaprune work here? On this machine, and on a real network."""
