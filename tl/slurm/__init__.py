"""Jobs of Slurm: the text of a batch script, the tasks of a sweep, and when a job is requeued.

Imports no torch: it runs on login nodes, and at the beginning and end of each job.
"""
