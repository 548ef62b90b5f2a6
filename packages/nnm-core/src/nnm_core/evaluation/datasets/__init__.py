"""Data sets: loaders with checks, one format a module.

Every loader says in its errors which file, which line or item, what is wrong, and what the format looks like.
"""

from nnm_core.evaluation.datasets.beir import RetrievalSet, load_beir
from nnm_core.evaluation.datasets.claims import Claim, ClaimSet, load_claims
from nnm_core.evaluation.datasets.hub import download_beir, download_questions
from nnm_core.evaluation.datasets.load import FORMATS, Format, load_questions
from nnm_core.evaluation.datasets.locomo import Conversation, load_locomo
from nnm_core.evaluation.datasets.questions import Question, QuestionSet

__all__ = [
    "FORMATS",
    "Claim",
    "ClaimSet",
    "Conversation",
    "Format",
    "Question",
    "QuestionSet",
    "RetrievalSet",
    "download_beir",
    "download_questions",
    "load_beir",
    "load_claims",
    "load_locomo",
    "load_questions",
]
