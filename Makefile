# Every target runs plain commands, shown as they run, that work by hand too.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# Test files that run beside each other, in the order of tests/conftest.py.
WORKERS ?= 2
TEST = $(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
  --durations=15 --durations-min=5

.PHONY: quickstart test test-slow lint

# SDPO, then GRPO with as many generations, then both in one table and picture.
quickstart: $(VENV)/installed
	$(RUN) -m sdpo_jax.main --config=configs/quickstart.py
	$(RUN) -m sdpo_jax.main --config=configs/quickstart_grpo.py
	$(RUN) -m experiments.quickstart.compare runs/quickstart runs/quickstart_grpo

test: $(VENV)/installed-test
	$(TEST)

test-slow: $(VENV)/installed-test
	$(TEST) -m slow

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

# Editable: the command works from any folder, and runs the files that are here.
$(VENV)/installed: requirements.txt pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# libtpu compiles for TPUs on any Linux machine. It stays out of the environment's own
# packages: JAX would look for a TPU at every start, and complain.
$(VENV)/installed-test: $(VENV)/installed requirements-test.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-test.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(VENV)/aot --upgrade libtpu || echo "no libtpu here: its tests skip"
	touch $@
