# One image for every part of the stack but the brokers and Prometheus.
# The measuring half of Sidestep is not in it, nor what that needs.
FROM python:3.13-slim-trixie AS base

FROM base AS build
WORKDIR /build
COPY pyproject.toml constraints.txt deploy/requirements.py ./
RUN python requirements.py celery click +eventlet +gevent +flower +metrics >requirements.txt \
 && python -m venv --without-pip /opt/sidestep \
 && python -m pip --python /opt/sidestep/bin/python install --no-cache-dir --disable-pip-version-check \
      --only-binary :all: -c constraints.txt -r requirements.txt \
 && rm -rf /opt/sidestep/lib/python3*/site-packages/gevent/tests
# Modules compiled here, since nothing can be written where they run.
WORKDIR /app
COPY . .
RUN rm -rf pyproject.toml constraints.txt Dockerfile deploy/requirements.py \
 && /opt/sidestep/bin/python -m compileall -q --invalidation-mode unchecked-hash /app \
 && for part in data login redis rabbitmq messages worker producer flower lab samples; do \
      install -d -m 0700 "/volumes/$part"; done

FROM base
# No pip in what runs, nor the copy of it that Python brings. The folders give new volumes their owner.
RUN python -c "import pathlib, shutil, ensurepip, pip; [shutil.rmtree(pathlib.Path(m.__file__).parent) for m in (ensurepip, pip)]" \
 && rm -rf /usr/share/python-wheels \
 && groupadd --gid 10001 sidestep \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin sidestep
COPY --from=build /opt/sidestep /opt/sidestep
COPY --from=build --chown=10001:10001 /volumes /run/sidestep
COPY --from=build /app /app
ENV PATH=/opt/sidestep/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER 10001:10001
CMD ["python", "-m", "producer.cli", "--help"]
