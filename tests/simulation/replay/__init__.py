"""Commands of simulated fleets, repeated on a real server whose clock stands still between them."""
