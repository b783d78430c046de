"""The report: a run folder as one self-contained HTML page.

`load.py` reads the folder, `findings.py` compares and warns, `charts.py` computes the curves as SVG shapes, `page.py`
renders the template. Depends on the files of a run folder only, and may import nothing of `rlhf` but its errors.
"""
