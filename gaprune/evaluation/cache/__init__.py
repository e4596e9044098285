"""Never compute twice: what is known of masks that were tried before, bounded and bit for bit."""

from gaprune.evaluation.cache.lru import LRUCache
from gaprune.evaluation.cache.mask_cache import Marks, MaskCache, marks_of

__all__ = ["LRUCache", "Marks", "MaskCache", "marks_of"]
