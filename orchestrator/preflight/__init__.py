"""Whether a cluster is fit for a job. Pure: what hosts answered -> findings. See ``checks``."""
