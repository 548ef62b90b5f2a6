"""The library behind the training programs of nnm-mini: one job a module, imported by the programs in the folder
above."""
