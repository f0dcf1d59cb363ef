# Needs a POSIX shell and Python 3.11 or later; everything else goes into .venv.
.DEFAULT_GOAL := help
.PHONY: help setup demo test image test-image test-kube test-cluster check fix schema picture bench faults coverage crash verdicts histories restores together calls exports resumes lives overtaken partial plans mutate lock release clean

PY := .venv/bin/python
PIP_INSTALL := install --quiet --disable-pip-version-check --no-input --require-hashes --only-binary :all:
# Tests wait for servers as often as for a processor, so there is one worker more; more than 4 would
# wait for each other: each has servers of its own.
WORKERS = $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ $$n -ge 4 ] && echo 4 || echo $$((n + 1)))
TEST = $(PY) -m pytest -q -rs --numprocesses $(WORKERS) --dist loadgroup
LOCK := $(PY) -m uv pip compile pyproject.toml --quiet --universal --generate-hashes \
	--python-version 3.11 --no-header --no-annotate --upgrade

help: ## print this list
	@sed -n 's/^\([a-z-]*\): .*## \(.*\)/make \1 \t\2/p' Makefile | expand -t 19

setup: ## make .venv with everything the other commands need (PYTHON=... chooses the interpreter)
	@if cmp -s requirements-dev.lock .venv/installed.lock && $(PY) -c '' 2>/dev/null; then exit 0; fi; \
	old=; bare=; python=; \
	for each in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
		$$each -c '' 2>/dev/null || continue; \
		if ! $$each -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then old=$$each; \
		elif ! $$each -c 'import ensurepip, venv' 2>/dev/null; then bare=$$each; \
		else python=$$each; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		if [ -n "$$bare" ]; then echo "$$bare cannot make a virtual environment." \
			"On Debian and Ubuntu: apt install python3-venv"; \
		elif [ -n "$$old" ]; then echo "Python 3.11 or later is needed; $$old is" \
			"$$($$old -c 'import platform; print(platform.python_version())')." \
			"Name another one: make setup PYTHON=/path/to/python3"; \
		else echo "Python 3.11 or later is needed, and none was found." \
			"Name one: make setup PYTHON=/path/to/python3"; fi >&2; \
		exit 1; \
	fi; \
	echo "Making .venv with $$python and installing what requirements-dev.lock lists ..."; \
	rm -f .venv/installed.lock; \
	$$python -m venv --clear .venv && \
	$(PY) -m pip $(PIP_INSTALL) -r requirements-dev.lock && \
	cp requirements-dev.lock .venv/installed.lock

demo: setup ## watch the job bring a real database up to date
	@$(PY) -m tests.demo

test: setup ## run every test that needs no docker, and see that they meet every error code (ARGS='-k lock' chooses)
	@$(TEST) $(or $(ARGS),--codes=all)

IMAGE := $(or $(PG_PREFLIGHT_IMAGE),pg-preflight:pg$(or $(CLIENT),17))

image: ## build the image and measure it (CLIENT=18 for that client major, FULL=1 with a server in it)
	@PG_PREFLIGHT_IMAGE=$(IMAGE)$(if $(FULL),-full) image/build.sh $(or $(CLIENT),17) $(if $(FULL),--build-arg FULL=1)

test-image: setup image ## run the images and compose.yaml with docker
	@PG_PREFLIGHT_IMAGE=$(IMAGE)-full image/build.sh $(or $(CLIENT),17) --build-arg FULL=1
	@CLIENT=$(or $(CLIENT),17) PG_PREFLIGHT_IMAGE=$(IMAGE) $(PY) -m pytest -q -rs -n 2 tests/image $(ARGS)

test-kube: setup image ## play k8s/ with podman, in a container
	@PG_PREFLIGHT_IMAGE=$(IMAGE) tests/cluster/podman.sh $(PY) -m pytest -q -rs tests/cluster/test_manifests.py $(ARGS)

test-cluster: setup ## the same, and replicas, on the cluster that KUBECONFIG names
	@test -n "$$KUBECONFIG" || { echo "There is no cluster here: KUBECONFIG is not set." >&2; exit 1; }
	@test -n "$$CLUSTER_IMAGE" || { echo "Set CLUSTER_IMAGE (and CLUSTER_POSTGRES) to images that" \
		"the cluster's nodes can pull." >&2; exit 1; }
	@PG_PREFLIGHT_CLUSTER=kubectl $(PY) -m pytest -q -rs tests/cluster $(ARGS)

check: setup ## look at format, lint and types
	@$(PY) -m ruff format --check
	@$(PY) -m ruff check
	@$(PY) -m mypy

fix: setup ## format, and repair what the linter can repair
	@$(PY) -m ruff check --fix-only --exit-zero
	@$(PY) -m ruff format

bench: setup ## measure beside other tools, and write docs/benchmarks.md (QUICK=1, ARGS='gate', ARGS=--help)
	@BUILD_TOOLS=1 $(PY) -m tests.bench $(ARGS)

schema: setup ## write SCHEMA.md anew from a database that the migrations made
	@$(PY) -m tests.schema_doc

picture: setup ## draw the house anew in docs/architecture.md, from its imports
	@$(PY) -m tests.house

faults: setup ## write docs/faults.md anew from the fault table and the tests that stand for its rows
	@$(PY) -m tests.faults.table

coverage: setup ## say how many branches the tests with real servers take (ARGS='-k lock' chooses)
	@$(PY) -m pip install --quiet --disable-pip-version-check --only-binary :all: coverage
	@rm -rf .cache/coverage && mkdir -p .cache/coverage
	@-COVERAGE_FILE=$(CURDIR)/.cache/coverage/data $(TEST) tests/postgres tests/faults $(ARGS)
	@$(PY) -m coverage combine --quiet --data-file=.cache/coverage/data .cache/coverage
	@$(PY) -m coverage report --data-file=.cache/coverage/data --skip-covered --show-missing
	@echo "By branch, over the tests with real servers:" \
		"$$($(PY) -m coverage report --data-file=.cache/coverage/data --format=total --precision=1) % ($$(date -u +%F))"

crash: setup ## kill the job, its clients and its server at random moments (SEED=7/123, MINUTES=10, MAJORS=15,18, EVENTS=1, MESSAGES=10, IMPORTS=1, STORIES=up,wrap, VICTIMS=job,backend)
	@$(PY) -m tests.faults.crash --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1) $(if $(MAJORS),--majors $(MAJORS)) $(if $(EVENTS),--events) $(if $(MESSAGES),--messages $(MESSAGES)) $(if $(IMPORTS),--imports $(IMPORTS)) $(if $(STORIES),--stories $(STORIES)) $(if $(VICTIMS),--victims $(VICTIMS))

verdicts: setup ## put databases together at random and see what is said of their backups (SEED, MINUTES)
	@$(PY) -m tests.faults.verdicts --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

histories: setup ## change folders, histories and databases at random, beside a model (SEED, MINUTES)
	@$(PY) -m tests.faults.histories --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

restores: setup ## take backups, restore and swap at random, with others at work, beside a model (SEED, MINUTES)
	@$(PY) -m tests.faults.restores --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

together: setup ## hold a run anywhere while another goes to its end, and see both end as alone (SEED, MINUTES)
	@$(PY) -m tests.faults.together --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

calls: setup ## refuse what is asked of the file system of backups, at random (SEED, MINUTES)
	@$(PY) -m tests.faults.calls --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

exports: setup ## take versions back that have a table in common, at random, and see that nothing is lost (SEED, MINUTES)
	@$(PY) -m tests.faults.exports --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

resumes: setup ## kill files without a transaction whose session holds something, and go on with them (SEED, MINUTES)
	@$(PY) -m tests.faults.resumes --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

lives: setup ## have servers that are only temporary come and go while a run waits for one (SEED, MINUTES)
	@$(PY) -m tests.faults.lives --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

overtaken: setup ## have runs lose their lock in the middle of a file to others, at random (SEED, MINUTES)
	@$(PY) -m tests.faults.overtaken --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

partial: setup ## hold rehearsals with some rows against what the server says with all (SEED, MINUTES)
	@$(PY) -m tests.faults.partial --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

plans: setup ## hold what plan says of statements at random against the server that runs them (SEED, MINUTES)
	@$(PY) -m tests.faults.plans --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1)

mutate: setup ## break lines that promises rest on, and print what no test notices (ARGS='12 lock')
	@$(PY) -m tests.mutants $(ARGS)

lock: setup ## resolve the dependencies of pyproject.toml anew
	@$(PY) -m pip install --quiet --disable-pip-version-check --only-binary :all: uv
	@$(LOCK) --output-file requirements.lock
	@$(LOCK) --group dev --output-file requirements-dev.lock
	@$(LOCK) --group image --output-file requirements-image.lock
	@$(subst pyproject.toml,,$(LOCK)) --group stores --output-file requirements-stores.lock
	@$(subst pyproject.toml,,$(LOCK)) --group stores --group stores-test \
		--output-file requirements-buckets.lock

release: setup ## version, changelog, tag, archives, checksums in dist/ (VERSION=0.2.0); publishes nothing
	@.ci/release "$(VERSION)"

clean: ## remove what these commands made
	rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
