"""Names of the files in a run directory (see `gaprune.runs.directory`)."""

CONFIG, RECORD, HISTORY = "config.toml", "result.json", "history.jsonl"
MASK, PRUNED, FRONT = "mask.safetensors", "pruned.safetensors", "front.safetensors"
REPAIRED = "repaired.safetensors"
REPORT_DATA, REPORT = "report.json", "report.html"
FILES = (CONFIG, RECORD, HISTORY, MASK, PRUNED, REPORT_DATA, REPORT)
CHECKPOINT, LOCK = "checkpoint", "lock"
MAY_HOLD = {*FILES, FRONT, REPAIRED, CHECKPOINT}  # what --overwrite may remove
