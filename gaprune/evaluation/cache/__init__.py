"""Never compute twice: what is known of masks that were tried before, bounded and bit for bit."""

from gaprune.evaluation.cache.lru import Memory
from gaprune.evaluation.cache.mask_cache import Known, Marks, marks_of

__all__ = ["Known", "Marks", "Memory", "marks_of"]
