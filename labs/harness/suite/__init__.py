"""How a lab's tests run and what they say: the pytest plugin, limits, failures in words; watching, a summary."""
