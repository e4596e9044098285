"""How fast a search is, beside one forward pass, the original idea and what others offer."""
