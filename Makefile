PYTHON ?= python3

.PHONY: test format clean

test: .venv/installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pytest

format: .venv/installed
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
