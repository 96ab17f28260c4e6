"""Before inference: estimate every model's quality and cost for a query, then choose who answers.

One published method, one module named by its id; policies turn any router's estimates into a choice.
"""
