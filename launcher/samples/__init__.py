"""Which tokens, in which order, for which rank: everything a pure function of position."""
