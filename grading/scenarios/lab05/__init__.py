"""Lab 05: the judge plays the network, keeps the ledger of the caches, and is the clock of what is measured."""
