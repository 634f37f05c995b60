# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
SHELL := /bin/sh
PY := .venv/bin/python
PYTEST := $(PY) -m pytest
COLLECTION := ansible_collections.pgfleet.basebackup
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Another version's shim or an activated environment must not leak in.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

.PHONY: help demo demo-down test lint format unit integration hosts molecule sanity oldest soak bench build lock clean

help:
	@echo 'make demo         a sandbox of two servers, backed up, restored and checked; make demo-down removes it'
	@echo 'make test         every check below but soak and bench'
	@echo 'make lint         ruff, mypy, yamllint, ansible-lint, antsibull-docs, antsibull-changelog'
	@echo 'make format       imports and layout as lint wants them'
	@echo "make unit         tests without a server; ARGS='-k wal' picks"
	@echo "make integration  tests on real servers; PG=15 and ARGS='-k standby' pick"
	@echo 'make hosts        the README on hosts with systemd, reached by ssh; needs root'
	@echo 'make molecule     the scenarios in extensions/molecule'
	@echo 'make sanity       ansible-test sanity and units on a copy of the tree'
	@echo 'make oldest       unit tests and marked integration tests on the oldest ansible-core'
	@echo 'make soak         random writes, backups and restores for SOAK seconds (default 300), SEED picks the order'
	@echo 'make bench        backup and restore against cp and pg_basebackup'
	@echo 'make build        the installable artifact'
	@echo 'make lock         resolve requirements/ anew'
	@echo 'make clean        remove what these made here; the cache of PostgreSQL binaries stays'

.venv/stamp .venv-oldest/stamp: tools/bootstrap.sh $(wildcard requirements/core-*.txt)
	@sh tools/bootstrap.sh $(@D)

# It touches nothing outside the clone and its cache, hence not pip's either.
demo demo-down: export PIP_NO_CACHE_DIR := 1
demo demo-down: .venv/stamp
	@$(PY) -m tools.demo $(if $(filter demo-down,$@),down,up)

test:
	$(MAKE) lint
	$(MAKE) unit
	$(MAKE) integration
	$(MAKE) hosts
	$(MAKE) molecule
	$(MAKE) sanity
	$(MAKE) oldest

lint: .venv/stamp
	ruff check .
	ruff format --check .
	mypy -p $(COLLECTION).plugins -p tests.harness -p tools
	yamllint --strict .
	ansible-lint --offline --strict
	antsibull-changelog lint
	antsibull-docs lint-collection-docs . --plugin-docs --validate-collection-refs=self

format: .venv/stamp
	ruff check --fix-only --select I .
	ruff format .

unit: .venv/stamp
	$(PYTEST) tests/unit -n 2 --dist worksteal $(ARGS)

integration: .venv/stamp
	$(PYTEST) tests/integration -n 2 --dist worksteal $(ARGS)

hosts: .venv/stamp
	$(PYTEST) tests/hosts -n 2 --dist loadfile $(ARGS)

molecule: .venv/stamp
	$(PY) -m tools.molecule $(ARGS)

sanity: .venv/stamp
	$(PY) -m tools.sanity $(ARGS)

oldest: .venv-oldest/stamp
	.venv-oldest/bin/python -m pytest tests/unit -n 2 --dist worksteal
	.venv-oldest/bin/python -m pytest tests/integration -m oldest_core

soak: .venv/stamp
	PGFLEET_SOAK=$(or $(SOAK),300) $(if $(SEED),PGFLEET_SEED=$(SEED)) $(PYTEST) tests/integration/test_property.py -s $(ARGS)

bench: .venv/stamp
	$(PY) -m tools.bench $(ARGS)

build: .venv/stamp
	ansible-galaxy collection build --force

lock: .venv/stamp
	$(PY) -m pip install --quiet uv
	@set -e; for line in '21 3.12 dev' '19 3.11 dev' '18 3.11 oldest'; do set -- $$line; \
	echo "ansible-core~=2.$$1.0" >.venv/constraint.txt; out=requirements/core-2.$$1.txt; \
	uv pip compile --quiet --universal --no-header --no-annotate --upgrade --python-version $$2 \
	  --constraint .venv/constraint.txt requirements/$$3.in --output-file $$out >/dev/null; \
	{ echo '# Made by `make lock`; do not edit.'; cat $$out; } >.venv/lock.txt; mv .venv/lock.txt $$out; done

clean:
	rm -rf .venv .venv-oldest .cache .mypy_cache .ruff_cache .pytest_cache tests/output pgfleet-basebackup-*.tar.gz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
