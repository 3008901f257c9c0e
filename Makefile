# Every target makes the environment that it needs; `make demo` and `make test` want Python 3.11 and make only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check format lint types docs matrix bench pictures soak clean

demo: $(VENV)/.demo
	$(BIN)/python -m examples.demo

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses=3

check: lint types docs matrix

format: $(VENV)/.check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.check
	$(BIN)/mypy --strict
	$(BIN)/python -m pytest tests/test_types.py

# The pages in docs/_build/html; a warning is an error. Wants no network but for the tools themselves.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -E -W -n --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

# The tests on every Python and with every aiohttp that is supported and found.
matrix: $(VENV)/.check
	$(BIN)/python .ci/matrix.py

# Installs wrk, nginx and Varnish first, where apt-get is there and we may; without them their rows say so.
bench: $(VENV)/.bench
	-@$(BIN)/python -m bench.install
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

# The pictures and the tables of README.md and docs/figures.md, of the data of the latest `make bench`, or of DATA=FILE.
pictures: $(VENV)/.pictures
	$(BIN)/python -m bench.pictures $(if $(DATA),--data $(DATA))
	$(BIN)/python -m bench.markdown $(if $(DATA),--data $(DATA))

# The long forms of what the suite has in short: bad input for a minute, random herds and readers in virtual time,
# streams that end in every way, a thousand times each, secrets of many users, models, and ten minutes of chaos over real
# sockets on each kind of loop.
soak: $(VENV)/.test
	$(BIN)/python -m tests.growth --seconds 60
	$(BIN)/python -m tests.test_fuzz 0 20000
	$(BIN)/python -W ignore -m tests.test_foreign_fuzz 0 10000
	$(BIN)/python -m tests.test_parsing 100000
	$(BIN)/python -m tests.test_broadcast_interleavings 20000
	$(BIN)/python -m tests.test_client_streaming 0 5000
	ROUNDS=1000 $(BIN)/python -m pytest tests/test_streams_ends.py -k many_times
	$(BIN)/python -m tests.leaks 100000
	$(BIN)/python -m tests.test_model_core 10000
	$(BIN)/python -W ignore -m tests.test_model_middleware 10000
	$(BIN)/python -m tests.chaos --seconds 600 --loop asyncio
	$(BIN)/python -m tests.chaos --seconds 600 --loop uvloop

clean:
	rm -rf docs/_build $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.pip:
	@echo "Making the environment in $(VENV) ..."
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, such as: make PYTHON=python3.13")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[uvloop]"
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --group test --group ecosystem
	@touch $@

$(VENV)/.check: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --group check --group bench
	@touch $@

$(VENV)/.bench: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

$(VENV)/.pictures: $(VENV)/.bench
	$(BIN)/python -m pip install --quiet --group pictures
	@touch $@
