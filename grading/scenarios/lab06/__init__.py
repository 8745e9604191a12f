"""Lab 06: the block manager, one call at a time, against a ledger that the judge keeps."""
