"""Never compute twice: what is known of masks that were tried before, bounded and bit for bit."""

from gaprune.memory.known import Known, Marks, marks_of
from gaprune.memory.lru import Memory

__all__ = ["Known", "Marks", "Memory", "marks_of"]
