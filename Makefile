# `make demo` and `make test` set everything up on a machine that only has Python.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test slow oldest axolotl check docs release quickstart coverage torture clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/loraprune demo --output build/demo --overwrite

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow"

slow: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 2 -m slow

# The lower bounds of the libraries, in a separate environment.
OLDEST = $(VENV)-oldest
OLDEST_TESTS = tests/families tests/scoring/criteria tests/pruning/allocation tests/pipeline tests/test_shaped.py tests/pruning/test_surgery.py

$(OLDEST)/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt torch
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[report,metrics]' \
		beartype hypothesis pytest pytest-timeout pytest-xdist
	touch $@

oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest --numprocesses 2 --dist loadfile $(OLDEST_TESTS)

# Axolotl itself, whose pins exclude the newest libraries, in a separate environment.
AXOLOTL = $(VENV)-axolotl

$(AXOLOTL)/installed: pyproject.toml tests/axolotl-requirements.txt
	$(PYTHON) -m venv $(AXOLOTL)
	$(AXOLOTL)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(AXOLOTL)/bin/python -m pip install --quiet --constraint constraints.txt --editable . transformers==5.16.1 peft==0.20.0 \
		accelerate==1.13.0 datasets==4.8.4 pydantic requests typer opentelemetry-sdk \
		opentelemetry-exporter-otlp-proto-http beartype hypothesis pytest pytest-timeout
	$(AXOLOTL)/bin/python -m pip install --quiet --no-deps --requirement tests/axolotl-requirements.txt
	touch $@

axolotl: $(AXOLOTL)/installed
	$(AXOLOTL)/bin/python -m pytest tests/training/test_trainers_of_others.py

check: $(VENV)/installed
	scripts/check $(BIN)

docs: $(VENV)/installed
	$(BIN)/zensical build --clean --strict

release: $(VENV)/installed
	$(BIN)/python scripts/release_check.py

# The quick start, word for word, in a separate environment; builds llama.cpp.
quickstart: $(VENV)/installed
	rm -rf build/quickstart
	$(BIN)/python -m build --no-isolation --wheel --outdir build/quickstart/dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python scripts/follow_quickstart.py build/quickstart/dist/*.whl build/quickstart/desk

coverage: $(VENV)/installed
	$(BIN)/python -m benchmarks.core_coverage

torture: $(VENV)/installed
	$(BIN)/python -m benchmarks.torture

clean:
	rm -rf $(VENV) $(OLDEST) $(AXOLOTL) build dist
