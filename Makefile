PYTHON ?= python3
export PYTHON

# A container that starts beside a test would keep the test's mounts, and so its loop devices, as long as it lives.
ALONE := $(if $(filter 0,$(shell id -u)),unshare --mount --propagation private)

.DEFAULT_GOAL := help
.NOTPARALLEL: # tests of the kernel share one machine
.PHONY: help setup demo check test test-root test-kernel sanity bench soak e2e e2e-external e2e-bench setup-e2e e2e-binaries image clean format proto manifests lock python tools

help:
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install what is missing on this machine and make .venv
	@scripts/setup.sh system python

demo: setup ## see volumes made, used, grown and deleted on this machine (root)
	.venv/bin/csi-local demo

check: python ## formatting, lint, types, imports between rooms, generated files
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python scripts/gen_proto.py --check
	.venv/bin/hadolint Dockerfile

# What runs in User-Mode Linux has a kernel of its own, and one processor: it does not disturb what runs beside it.
test: setup tools ## everything that must hold for a change to land (root)
	.venv/bin/python scripts/beside.py "tests/uml/run --time-limit 2400" \
		"$(ALONE) .venv/bin/python tests/sanity/run.py && $(ALONE) .venv/bin/pytest -m 'not uml and not e2e'"

test-root: setup ## only the tests on the real kernel (root)
	$(ALONE) .venv/bin/pytest -m root

test-kernel: setup tools ## the tests inside User-Mode Linux: project quota, power cuts
	tests/uml/run

sanity: setup tools ## csi-sanity against every kind of volume (root)
	$(ALONE) .venv/bin/python tests/sanity/run.py

bench: setup tools ## measure against the bare filesystem (root)
	.venv/bin/python -m tests.bench

soak: setup ## half an hour of mixed load with faults, held to every answer (root)
	$(ALONE) .venv/bin/python -m tests.soak

e2e: setup tools setup-e2e ## the driver in a real Kubernetes of two nodes, with real pods (root)
	PATH="$$PATH:$$PWD/.tools/go/go/bin" .venv/bin/python -m tests.e2e scenarios

e2e-external: setup tools setup-e2e ## the storage suite of Kubernetes itself (root)
	PATH="$$PATH:$$PWD/.tools/go/go/bin" .venv/bin/python -m tests.e2e external

e2e-bench: setup tools setup-e2e ## measure claims and pods in that cluster (root)
	PATH="$$PATH:$$PWD/.tools/go/go/bin" .venv/bin/python -m tests.e2e bench

image: ## build the container image (root)
	@scripts/setup.sh image
	scripts/image.sh

clean: ## remove everything that make has made
	rm -rf .venv .tools .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
	find csi_local tests scripts -name __pycache__ -prune -exec rm -rf {} +

# For developers of this repository; not in the list.

setup-e2e:
	@scripts/setup.sh e2e image go

e2e-binaries: setup-e2e
	PATH="$$PATH:$$PWD/.tools/go/go/bin" .venv/bin/python -m tests.e2e.binaries cluster snapshots

python:
	@scripts/setup.sh python

tools: python
	@scripts/setup.sh sanity helm

format: python
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

manifests: tools
	.venv/bin/python scripts/render_kustomize.py

proto: python
	.venv/bin/python scripts/gen_proto.py

lock: python
	scripts/lock.sh
