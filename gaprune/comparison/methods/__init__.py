"""What evolved masks are compared with: one-shot rules, training with masks, smaller networks."""
