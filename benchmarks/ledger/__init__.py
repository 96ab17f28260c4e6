"""What a large ledger costs whoever reads, shortens, migrates or copies it, and those who write meanwhile."""
