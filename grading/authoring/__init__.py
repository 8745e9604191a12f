"""Making and proving a lab: starters, mutants, the kill table, symptoms, agreement of practice and judge."""
