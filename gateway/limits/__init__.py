"""What a caller may use: rates, calls at once, money. Slices of shared limits held by a worker, and the door that
takes from them."""
