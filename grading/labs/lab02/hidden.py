"""What only the judge asks of Lab 02: nothing beyond its suite."""
