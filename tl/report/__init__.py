"""``report.html``: what a run, or several side by side, has come to, in one file.

`seen` and `kept` are what a run leaves for it, `record` reads a run's folder, `advice` says what to
do next, `page` and `comparison` make the file of ``templates/``; the others draw.
"""
