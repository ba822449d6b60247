from .pairing.pairs import Recipe, make_pair

__all__ = ["Recipe", "make_pair"]
