"""Several runs in one page: live, by `rlhf watch`, or as one file, by `rlhf report A B`.

`row_files.py` reads growing files, `runs.py` makes of run folders what the page shows, `server.py` and `command.py`
serve it, `static.py` writes it with its data inside. Nothing but files of run folders is read.
"""
