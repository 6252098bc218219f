"""Decoding with K steps: options, generator and the choice among candidates."""
