"""From settings and a target to what exactly will be done."""
