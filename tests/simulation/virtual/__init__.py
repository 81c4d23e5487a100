"""A world for simulations: hosts, a network and clocks in one process, repeatable from a seed.

Nothing here knows of turnbus. `World` is the entry point.
"""
