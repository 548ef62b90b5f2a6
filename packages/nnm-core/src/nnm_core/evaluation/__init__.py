"""Measuring: data sets, metrics, statistics, retrieval and answering harnesses."""
