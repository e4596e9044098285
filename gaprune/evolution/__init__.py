"""The evolutionary search: genes, operators and the engine on DEAP."""
