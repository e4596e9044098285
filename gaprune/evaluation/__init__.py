"""On what candidates are tried, and how they answer and are judged there."""
