"""The paper's evaluation of a model in three steps that meet only in the evaluation's folder.

`reconstruct.py` samples, `measure.py` compares, `report.py` writes the page.
"""
