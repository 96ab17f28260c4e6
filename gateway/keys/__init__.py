"""Virtual keys: who a request comes from."""
