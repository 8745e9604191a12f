"""How a lab's tests run and report: the pytest plugin, limits, failures in words; watching, a summary."""
