"""What lies in files of weights and masks, and what an export says of its files."""
