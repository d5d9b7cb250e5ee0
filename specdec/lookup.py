"""What followed the last bytes of a text where they stood before: drafts that cost no pass.

Prompt lookup decoding (Saxena, 2023): code and lists repeat themselves, and so does what a small
model writes at low temperature.  The newest such place counts, and how many bytes stood there
alike: the more, the more of what followed is right.  Found by `native/texts.h` within the compiled
core's rounds.
"""

TIERS = (3, 8, 16, 32)
"""So many last bytes, at least, are found again."""

Lookup = tuple[int, ...]
"""How many drafts to take from the text where it matches, for each of `TIERS`; 0: none."""

NO_LOOKUP: Lookup = (0,) * len(TIERS)
