"""What to run on the servers: a Job (frozen), from the command line and an inventory."""

from orchestrator.job.build import build_job, check_run_id, stage_of
from orchestrator.job.model import MODES, RECIPES, WORKLOADS, Job, JobDefaults, JobOptions

__all__ = [
    "MODES",
    "RECIPES",
    "WORKLOADS",
    "Job",
    "JobDefaults",
    "JobOptions",
    "build_job",
    "check_run_id",
    "stage_of",
]
