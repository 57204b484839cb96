"""Every job, registered: import this to have `JOBS` full."""

from tasks import carriers, cpu, flaky, io, payload, references, shared, transcode
from tasks.registry import JOBS, Job, Nature

__all__ = ["JOBS", "Job", "Nature", "carriers", "cpu", "flaky", "io", "payload", "references", "shared", "transcode"]
