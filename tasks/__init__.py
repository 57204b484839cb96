"""What every worker imports: the jobs, the one Celery app, and the marks it leaves. No analysis, no statistics."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Build the app when `celery -A tasks` asks for it, and not before: the jobs are also used without Celery."""
    if name == "celery":
        from tasks.app import app_from_env  # noqa: PLC0415  importing Celery takes a quarter of a second

        return app_from_env()
    raise AttributeError(f"module 'tasks' has no attribute {name!r}")
