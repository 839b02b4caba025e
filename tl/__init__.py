"""Transfer learning on any number of processes: a run is a list of phases."""

__version__ = "0.1.0"
