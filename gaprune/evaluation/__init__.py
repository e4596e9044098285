"""How good a mask is: the evaluator, its objectives and forward modes, latency, held-out inputs."""
