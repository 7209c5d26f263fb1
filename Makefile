# SPDX-License-Identifier: GPL-3.0-or-later
# make help lists what there is. PYTHON=/path/to/python3.12 chooses the interpreter (3.11, 3.12 or 3.13).
.DEFAULT_GOAL := help
SHELL := /bin/sh
# Our own directory: nothing of another project is picked up from the home directory, nothing is left there.
export ANSIBLE_HOME := $(CURDIR)/.ansible
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PYTHON
# Ansible ends where the locale's encoding is not UTF-8, as that of LC_ALL=C is.
ifneq ($(filter C POSIX,$(or $(LC_ALL),$(LC_CTYPE),$(LANG),C)),)
export LC_ALL := C.UTF-8
endif
BIN := .venv/bin
# One line a step; make deploy OUTPUT=default shows everything that Ansible says.
OUTPUT ?= wheels.ops.steps
PLAYBOOK = ANSIBLE_STDOUT_CALLBACK=$(OUTPUT) $(BIN)/ansible-playbook -i $(INVENTORY)
# Whatever an interrupted run started is ended.
SUPERVISED = $(BIN)/python -m tests.supervise
INVENTORY ?= inventories/sandbox
COLLECTION := collections/wheels/ops

.PHONY: help run-tools dev-tools lint-tools system-packages demo test unit stress matrix faults test-releases test-fleet lint new-check checks-page bench mutants sandbox-up sandbox-break sandbox-compare sandbox-status deploy verify recover rollback health maintenance monitor sandbox-down build docs site pictures release compatibility inventory prepare wheelhouse faults clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run-tools:
	@requirements/bootstrap run

dev-tools: system-packages lint-tools
	@tests/awx-collection

lint-tools:
	@requirements/bootstrap dev

system-packages:
	@tests/system-packages

demo: run-tools ## Reproduce the eight incidents on this machine, deploy, print the results (sets everything up)
	@$(BIN)/python -m tests.sandbox demo

test: dev-tools ## Run lint and every test that this machine can run, or one part: make test T=tests/unit/rls (sets everything up)
	@tests/run $(T)

unit: lint-tools ## Run the unit tests: no server, no system packages (half a minute)
	@$(SUPERVISED) $(BIN)/pytest -q tests/unit

stress: dev-tools ## Run everything that changes a host side by side and kill it at random: 400 runs of the library, 10 of playbooks; 300 random RLS schemas (fifteen minutes)
	@WHEELS_OPS_STRESS_RUNS=400 WHEELS_OPS_STRESS_PLAYBOOKS=10 WHEELS_OPS_FUZZ=300 $(SUPERVISED) $(BIN)/pytest -q --timeout=3000 tests/integration/stress tests/integration/rls_fuzz

matrix: dev-tools ## Rotate logs on five filesystems under five writers and five faults: 125 cells (root; minutes)
	@WHEELS_OPS_MATRIX=1 $(SUPERVISED) $(BIN)/pytest -q tests/modules/test_log_rotate_matrix.py

faults: dev-tools ## Break a deployed sandbox in 31 ways and 10 pairs, recover by playbook and by program, write docs/fault-matrix.md; 50 healthy runs (an hour)
	@WHEELS_OPS_FAULTS=1 $(SUPERVISED) $(BIN)/pytest -q --timeout=1800 tests/playbooks/test_faults.py

test-releases: dev-tools ## Deploy to three releases of the backend under uvicorn, gunicorn and nginx with 1, 2 and 4 processes; roll back (twenty minutes)
	@WHEELS_OPS_RELEASES=1 $(SUPERVISED) $(BIN)/pytest -q --timeout=3000 tests/playbooks/test_releases.py

compatibility: dev-tools ## Deploy, verify and roll back on the sandbox with each ansible-core and Python that is here: docs/compatibility.md (CELLS="2.18:3.11")
	@$(BIN)/python -m tests.sandbox up
	@$(SUPERVISED) $(BIN)/python -m tests.compatibility $(CELLS)

test-fleet: dev-tools ## Deploy under load to two hosts behind HAProxy, with one PostgreSQL and one Redis, in Podman (root; ten to thirty minutes; not part of make test)
	@$(SUPERVISED) $(BIN)/python -m tests.fleet test

lint: lint-tools ## Run ansible-lint, ruff, mypy, yamllint and antsibull-docs; installs no system packages
	@tests/lint

new-check: lint-tools ## Create and register a check: make new-check NAME=certificate (TITLE="TLS certificate" REMEDIES=service_restart)
	@$(BIN)/python -m tests.new_check "$(NAME)" --title "$(TITLE)" --remedies "$(REMEDIES)"
	@$(BIN)/python -m tests.generate

checks-page: lint-tools ## Write docs/checks.md from the registry of subjects
	@PYTHONPATH=src $(BIN)/python -m tests.new_check --page

mutants: dev-tools ## Inject small faults into checks, scores, lock and journal; fail if the tests notice less than 90 % (minutes; ONLY="checks/http.py" NUMBER=50 SEED=2)
	@$(SUPERVISED) $(BIN)/python -m tests.mutants $(ONLY) $(if $(NUMBER),--number $(NUMBER)) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: dev-tools ## Run benchmarks, each against a peer in the same run: make bench, or make bench ONLY="W C"
	@$(SUPERVISED) $(BIN)/python -m tests.bench.harness $(ONLY)

sandbox-up: run-tools ## Start PostgreSQL, Redis, the stand-in backend, a Celery worker and beat
	@$(BIN)/python -m tests.sandbox up

sandbox-break: ## Reproduce the eight incidents in the sandbox
	@$(BIN)/python -m tests.sandbox break

sandbox-compare: run-tools ## Put the same load on the broken and the deployed sandbox, and compare: memory, slowest request, first audio
	@$(BIN)/python -m tests.sandbox compare

sandbox-status: ## Show what runs in the sandbox
	@$(BIN)/python -m tests.sandbox status

# Of the command line alone: some shells have a variable HOST of their own.
HOST_GIVEN = $(if $(filter command,$(origin HOST)),$(HOST))
DISCOVERED = $(if $(filter-out file,$(origin INVENTORY)),$(INVENTORY),inventories/production)

inventory: run-tools ## Look at a host and write its inventory: make inventory HOST=user@host (INVENTORY=inventories/production)
	@[ -n "$(HOST_GIVEN)" ] || { echo "Name the host: make inventory HOST=user@host, or HOST=localhost" >&2; exit 2; }
	@ANSIBLE_LOCALHOST_WARNING=false ANSIBLE_INVENTORY_UNPARSED_WARNING=false ANSIBLE_STDOUT_CALLBACK=$(OUTPUT) \
		$(BIN)/ansible-playbook $(if $(wildcard $(DISCOVERED)/*),-i $(DISCOVERED)) playbooks/discover.yml -e wheels_ops_address=$(HOST_GIVEN) -e wheels_ops_inventory=$(DISCOVERED) $(ARGS)

prepare: run-tools ## Create the virtual environment of our tasks on the hosts, once; the backend is not touched
	@$(PLAYBOOK) playbooks/prepare.yml $(ARGS)

# Debian 12 and 13, Ubuntu 22.04 and 24.04.
PYTHONS ?= 3.10 3.11 3.12 3.13
MACHINE ?= x86_64

wheelhouse: run-tools ## Download the packages for hosts without a package index into build/wheelhouse (PYTHONS="3.11 3.13" MACHINE=aarch64)
	@$(BIN)/python requirements/wheelhouse build/wheelhouse $(MACHINE) $(PYTHONS)

deploy: ## Run playbooks/deploy.yml on the sandbox, or on INVENTORY=... (ARGS="--check --diff")
	@$(PLAYBOOK) playbooks/deploy.yml $(ARGS)

verify: ## Run the checks; exit status 0 when every check passes
	@$(PLAYBOOK) playbooks/verify.yml $(ARGS)

recover: ## Run one remedy for every failing check, then the checks again
	@$(PLAYBOOK) playbooks/recover.yml $(ARGS)

rollback: ## Roll back the newest deployment
	@$(PLAYBOOK) playbooks/rollback.yml $(ARGS)

health: ## Report the health as JSON, HTML, text and Prometheus text
	@$(PLAYBOOK) playbooks/health.yml $(ARGS)

maintenance: ## Clean up, write the performance report, suggest thresholds (ARGS="--tags weekly", monthly or quarterly)
	@$(PLAYBOOK) playbooks/maintenance.yml $(ARGS)

monitor: ## Install the health monitor and the automated recovery for hosts without Ansible, with their timer
	@$(PLAYBOOK) playbooks/monitor.yml $(ARGS)

sandbox-down: ## Stop the sandbox; its files stay in .sandbox
	@$(BIN)/python -m tests.sandbox down

build: run-tools ## Build the collection's tarball into build/, out of what git tracks
	@$(BIN)/python -m tests.release

release: ## Build tarball, wheel, SBOM, changelog and checksums into build/: make release REPOSITORY=https://... (ISSUES= DOCUMENTATION= HOMEPAGE=)
	@requirements/bootstrap release
	@$(BIN)/python -m tests.release --release --repository "$(REPOSITORY)" --issues "$(ISSUES)" --documentation "$(DOCUMENTATION)" --homepage "$(HOMEPAGE)"

docs: checks-page ## Write docs/variables.md, docs/checks.md and the defaults of the roles' argument_specs.yml
	@$(BIN)/python -m tests.generate

pictures: dev-tools ## Make docs/pictures from the running sandbox (runs the demo first where there is none)
	@$(BIN)/python -m tests.pictures

site: lint-tools ## Build the documentation as a site, strictly and without network: build/site/html/index.html
	@$(BIN)/python -m tests.site

clean: ## Stop the sandbox and remove everything that make created
	@[ ! -x $(BIN)/python ] || $(BIN)/python -m tests.sandbox down || true
	rm -rf .sandbox .venv .venv-backend .venv-release .cache .ansible build .mypy_cache .ruff_cache .pytest_cache
