# `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO  ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
HOST   := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BINARY := $(TARGET)/$(HOST)/release/cynode

.PHONY: help demo test setup build fmt lint unit it rootless test-egress-tools test-tunnel test-soak test-chaos test-inference-clients test-inference-real bench bench-check test-fuzz fuzz-parsers fuzz-api install release clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 31

demo: setup build ## Run a task in a sandbox on a registered node
	@scripts/demo.sh $(BINARY)

test: setup fmt lint unit it ## Run the format check, lints and all tests, with real containers

setup: ## Install missing packages for building and testing
	@scripts/setup.sh

build: ## Build the static binary
	$(CARGO) build --release --locked
	@echo "built $(BINARY)"

fmt: ## Check the format
	$(CARGO) fmt --check

lint: ## Run clippy, and cargo-deny where it is installed
	$(CARGO) clippy --all-targets --locked -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --locked check; \
	else echo "lint: cargo-deny is not installed; licences and advisories of crates are not checked"; fi

unit: ## Run unit and property tests, and the rules between rooms
	$(CARGO) test --locked --lib --test properties --test house

it: ## Run black-box tests of the binary, with podman
	$(CARGO) build --locked --example stand-in-ollama --example attack
	$(CARGO) test --locked --test it
	CYNODE_TEST_WARM=1 $(CARGO) test --locked --test it -- escapes:: files:: job_ends:: recovery:: sandbox:: stdin::

test-tunnel: setup ## Run the black-box tests with nodes that are called by their tunnels (minutes)
	$(CARGO) build --locked --example stand-in-ollama --example attack
	CYNODE_TEST_CONNECT=dial $(CARGO) test --locked --test it

rootless: ## Run the sandbox tests as a plain user, too (as root)
	$(CARGO) build --locked --bins --example attack
	@CARGO="$(CARGO)" scripts/rootless.sh $(TARGET)/$(HOST)/debug/cynode

test-soak: setup ## Run a thousand jobs in a row, also in warm sandboxes, and check for leftovers (minutes)
	$(CARGO) test --locked --test it -- --ignored soak::
	CYNODE_TEST_WARM=1 $(CARGO) test --locked --test it -- --ignored soak::

test-chaos: setup ## Kill processes and cut networks while jobs run; CHAOS_SEED repeats a run (minutes, root)
	$(CARGO) test --locked --test chaos -- --ignored --nocapture --test-threads=1
	CYNODE_TEST_WARM=1 $(CARGO) test --locked --test chaos -- --ignored --nocapture --test-threads=1 storm
	CYNODE_TEST_CONNECT=dial $(CARGO) test --locked --test chaos -- --ignored --nocapture --test-threads=1 storm

test-inference-clients: setup ## Run the official OpenAI, Anthropic and Ollama clients against cynode (PyPI)
	$(CARGO) build --locked --example stand-in-ollama
	python=$$(scripts/clients.sh) && CLIENTS_PYTHON="$$python" $(CARGO) test --locked --test it -- --ignored --nocapture official_clients::clients_work_with_echo official_clients::agents_hold

test-inference-real: setup ## Run the same clients with llama.cpp and a tiny model (PyPI)
	$(CARGO) build --locked --example stand-in-ollama
	python=$$(scripts/clients.sh --real) && CLIENTS_PYTHON="$$python" $(CARGO) test --locked --test it -- --ignored --nocapture official_clients::clients_work_with_real_model

test-egress-tools: setup ## Run a real pip and Cargo in a sandbox whose hosts are on a list (root)
	$(CARGO) build --locked
	scripts/egress-tools.sh $(TARGET)/$(HOST)/debug/cynode

bench: setup build ## Measure the performance and write docs/performance.md; BENCH chooses some (quarter of an hour)
	@scripts/setup.sh --bench
	$(CARGO) bench --locked --bench performance -- $(BENCH)

bench-check: setup build ## Compare the performance with the figures in docs/performance.md
	@scripts/setup.sh --bench
	$(CARGO) bench --locked --bench performance -- --check $(BENCH)

test-fuzz: fuzz-parsers fuzz-api ## Fuzz parsers and the User API (a few minutes)

fuzz-parsers: ## Fuzz the parsers of untrusted input
	@scripts/fuzz.sh

fuzz-api: ## Fuzz the User API from its openapi.json (SEED, EXAMPLES)
	@scripts/setup.sh --fuzz
	$(CARGO) build --locked
	@scripts/fuzz-api.sh $(TARGET)/$(HOST)/debug/cynode

install: build ## Install into /usr/local/bin (PREFIX)
	install -D -m 0755 $(BINARY) $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/cynode

release: ## Build the release into dist/: binary, SHA-256 and SBOM
	@scripts/release.sh

clean: ## Remove the build
	$(CARGO) clean
