"""The parts behind `turnbus dev`: Redis, an STT server and workers that may be broken at will."""
