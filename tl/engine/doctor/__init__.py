"""`tl doctor`: what a run would find on each node, and what to do about it, without running.

`examine` is the whole of it. What a check finds is a `findings.Finding`: `machine` looks at the
process and its node, `storage` at folders, `network` at ports and W&B, `together` at all processes
as one, `images` and `weights` at what the config names.
"""
