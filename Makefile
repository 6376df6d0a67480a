# Two commands matter: `make demo` and `make test`. Both set up what they need in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
SECONDS_EACH ?= 300

.PHONY: help wheel demo release-demo npm-runner test check bench load links aarch64 gate chaos search fuzz mutants attacks hosts constraints release docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up, then a whole federation on this machine (ARGS='--dataset hardhat --data DIR')"
	@echo "make release-demo  from a run to programs (.eim) on its nodes, and bad releases stopped"
	@echo "make npm-runner    run an .eim in Edge Impulse's own npm package, too (needs node and npm)"
	@echo "make test    set up, then style, types, import rules and all tests"
	@echo "make wheel   the package to install elsewhere: dist/apiary_fl-VERSION-py3-none-any.whl"
	@echo "make check   style, types and import rules only"
	@echo "make bench   overhead of a round, memory of a node (minutes; see benchmarks/README.md)"
	@echo "make load    rounds of 10 to 5000 nodes against one broker and one coordinator (minutes)"
	@echo "make links   bytes sent against bytes needed over bad links (10 minutes)"
	@echo "make aarch64 a node's training and pictures on a Pi's Python and wheels, emulated (minutes; needs root)"
	@echo "make gate    exports at 88 settings, none of which the export gate may refuse (an hour; goes on where it stopped)"
	@echo "make chaos   200 faults on a real federation, then the same model? (minutes; ARGS='--seed 7')"
	@echo "make search  the property tests on examples that nobody has tried (make test repeats the same ones)"
	@echo "make fuzz    coverage-guided fuzzing of all that reads the bus (SECONDS_EACH=300)"
	@echo "make mutants  would the tests notice wrong code? (hours; ARGS='--module round/state'; goes on where it stopped)"
	@echo "make attacks  one enrolled node against a fleet of real processes: what was tried, what the others got (minutes)"
	@echo "make hosts   a server and three Pis as systemd hosts on this machine, from nothing to restored (needs root)"
	@echo "make docs    the documentation as a site: build/site/index.html"
	@echo "make release wheel and sdist in dist/release/, built and verified"
	@echo "make constraints  choose the versions that make and the plays install, anew (constraints/*.txt)"
	@echo "make clean   remove what these made"

# The tested versions, where there is a file for this Python.
CONSTRAINTS = $(wildcard $(shell $(BIN)/python -c 'import sys; print("constraints/py%d%d.txt" % sys.version_info[:2])'))
INSTALL = @$(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS))

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV)

# A stamp per set of packages, so that a second call starts at once.
$(VENV)/.demo: pyproject.toml $(wildcard constraints/*.txt) | $(BIN)/python
	@echo "installing into $(VENV); TensorFlow is large, this takes a few minutes the first time"
	$(INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo deploy/requirements.txt
	$(INSTALL) --editable '.[dev]' --requirement deploy/requirements.txt
	@touch $@

$(VENV)/.docs: pyproject.toml $(wildcard constraints/*.txt) | $(BIN)/python
	$(INSTALL) --editable '.[docs]'
	@touch $@

# Newest versions that fit pyproject.toml, for every extra; run the tests before they are committed.
constraints: | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement tools/requirements.txt
	@$(BIN)/python tools/constraints.py

wheel:
	@$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

# Wheel and sdist for others, built and tried outside of this checkout: dist/release/.
release: | $(BIN)/python
	$(INSTALL) --requirement tools/requirements.txt
	@$(BIN)/python tools/release.py

# The documentation as a site, in build/site/.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@$(BIN)/python tools/site_check.py build/site

demo: $(VENV)/.demo
	@$(BIN)/apiary demo $(ARGS)

release-demo: $(VENV)/.dev
	@tests/system-packages
	@$(BIN)/python -m tests.release_demo $(ARGS)

# Without the packages' own scripts: sharp would fetch a library from elsewhere; its newer version needs none.
npm-runner: $(VENV)/.dev
	@command -v npm >/dev/null || { echo "npm is not installed: sudo apt install nodejs npm"; exit 1; }
	@mkdir -p build/npm && cp tests/npm/package.json build/npm/
	@cd build/npm && npm install --ignore-scripts --no-audit --no-fund --loglevel=error
	$(BIN)/pytest tests/install/test_npm_runner.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/yamllint --strict .github .pre-commit-config.yaml CITATION.cff mkdocs.yml
	$(BIN)/lint-imports --no-cache

# axe-core, for what the pages are to people who use a keyboard or a screen reader; without npm it is not tried.
build/browser/node_modules: tests/browser/package.json
	@mkdir -p build/browser && cp tests/browser/package.json build/browser/
	@if command -v npm >/dev/null; then \
		cd build/browser && npm install --ignore-scripts --no-audit --no-fund --loglevel=error && touch node_modules; \
	fi

test: $(VENV)/.dev check build/browser/node_modules
	@tests/system-packages
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 25 $(ARGS)

bench: $(VENV)/.dev
	@tests/system-packages
	$(BIN)/python -m benchmarks.round.overhead
	$(BIN)/python -m benchmarks.memory.node

load: $(VENV)/.dev
	@tests/system-packages
	$(BIN)/python -m benchmarks.fleet.load $(ARGS)

links: $(VENV)/.dev
	@tests/system-packages links
	$(BIN)/python -m benchmarks.links.traffic $(ARGS)

aarch64: $(VENV)/.dev
	@tests/system-packages aarch64
	$(BIN)/python -m tests.aarch64.run $(ARGS)

gate: $(VENV)/.dev
	@$(BIN)/python -m tests.gate.main $(ARGS)

chaos: $(VENV)/.demo
	@tests/system-packages
	@$(BIN)/apiary chaos --faults 200 --export --every-transition $(ARGS)

search: $(VENV)/.dev
	$(BIN)/pytest --hypothesis-profile=search -m hypothesis $(ARGS)

fuzz: $(VENV)/.dev
	$(INSTALL) 'atheris>=2.3,<4'
	@$(BIN)/python tests/fuzz/seeds.py build/fuzz
	$(BIN)/python tests/fuzz/fuzz_wire.py build/fuzz -max_total_time=$(SECONDS_EACH) -rss_limit_mb=512 -timeout=5 -max_len=400000

mutants: $(VENV)/.dev
	@$(BIN)/python -m tests.mutants.main $(ARGS)

attacks: $(VENV)/.dev
	@tests/system-packages
	@$(BIN)/python -m tests.attacks.main $(ARGS)

hosts: $(VENV)/.demo
	@tests/system-packages hosts
	$(INSTALL) --requirement deploy/requirements.txt
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.hosts.main $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist runs/.demo-* runs/.chaos-* runs/.exports
