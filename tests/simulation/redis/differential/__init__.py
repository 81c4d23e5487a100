"""Random histories of commands, and their comparison between the model and real servers."""
