"""From scores and a budget to masks, and from masks to a masked network."""
