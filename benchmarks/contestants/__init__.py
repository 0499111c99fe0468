"""What is measured. A module here is run as a process: as `carteiro run`, as Huey's consumer, or with `python -m`."""
