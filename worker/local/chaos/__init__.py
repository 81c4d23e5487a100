"""The chaos run: the proof that no word is lost and none said twice, whatever breaks.

Voices speak numbered words into the bus while a seeded nemesis kills, pauses and cuts everything
around the workers; a checker then holds what was published against what was said.
"""
