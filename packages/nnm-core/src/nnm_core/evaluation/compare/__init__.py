"""Side by side with classic RAG, on anyone's documents: arms, items, figures with intervals, one page to read.

from nnm_core.evaluation.compare.run import CompareSettings, compare
"""
