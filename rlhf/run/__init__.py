"""One run of any trainer: its folder, checkpoints, metrics, progress display and processes.

`folder` holds what a run writes, `files` writes atomically, `checkpoint` saves and resumes, `metrics` computes what a
step reports, `progress` shows it and takes requests to stop, `distributed` is for several processes, `saved_policy`
loads the policy of a run folder.

May import: rlhf.models, rlhf.config, rlhf.records, rlhf.errors; `files` imports nothing of this package, so that
rlhf.report may use it.
"""
