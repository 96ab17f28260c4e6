"""What a gateway costs: the same requests straight to an upstream, through Chorus, and through its peers.

python -m benchmarks.gateway [--quick]
"""
