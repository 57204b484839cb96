# The everyday commands. `make test` takes seconds and needs no broker and no network.
.PHONY: test test-real lint all
test:
	./scripts/test -q -m "not real and not docker"
test-real:
	./scripts/test -q -m "real and not docker"
lint:
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
all:
	./scripts/test
