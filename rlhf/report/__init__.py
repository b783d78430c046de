"""The report: a run folder as one self-contained HTML page.

`run_files.py` reads the folder, `health.py` warns, `metric_tables.py` summarises, `samples.py` pairs and colours
responses, `charts.py` computes curves as SVG shapes, and `report.py` renders the template. Depends on the files of a
run folder only; imports nothing of `rlhf` but `errors` and `run`.
"""
