"""The whole method on a tiny model and a generated pool: no hub, no GPU."""
