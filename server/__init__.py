"""What runs at the centre: admission, aggregation, checkpoints, rounds, report. Imports no torch."""
