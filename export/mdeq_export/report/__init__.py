"""A bundle's report: one HTML file with everything in it, readable without a network, and the times
of this machine beside it. No torch: what is in the bundle says all.
"""
