# `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO  ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
HOST   := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BINARY := $(TARGET)/$(HOST)/release/cynode

.PHONY: help demo test setup build fmt lint unit it rootless test-soak test-chaos bench test-fuzz fuzz-parsers fuzz-api install release clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: setup build ## See a task of yours run in a real sandbox on a registered node
	@scripts/demo.sh $(BINARY)

test: setup fmt lint unit it ## Format, lints and all tests, with real containers

setup: ## Install what building and testing need, where it is missing and can be installed
	@scripts/setup.sh

build: ## Build the one binary, static, with optimisation
	$(CARGO) build --release --locked
	@echo "built $(BINARY)"

fmt: ## Check the format
	$(CARGO) fmt --check

lint: ## Clippy, warnings are errors
	$(CARGO) clippy --all-targets --locked -- -D warnings

unit: ## Tests of rooms and their rules, pure decisions, and what reads a stranger's input
	$(CARGO) test --locked --lib --test properties --test house

it: ## Black-box tests of the real binary with real podman
	$(CARGO) build --locked --example stand-in-ollama --example attack
	$(CARGO) test --locked --test it

rootless: ## The tests of sandboxes once more as a plain user (where run by root)
	$(CARGO) build --locked --bins --example attack
	@CARGO="$(CARGO)" scripts/rootless.sh $(TARGET)/$(HOST)/debug/cynode

test-soak: setup ## A thousand jobs in a row, and what they leave behind (minutes)
	$(CARGO) test --locked --test it -- --ignored soak::

test-chaos: setup ## Kill and cut off everything while jobs run; CHAOS_SEED repeats a run (minutes, root)
	$(CARGO) test --locked --test chaos -- --ignored --nocapture --test-threads=1

bench: setup build ## What a task costs beside `podman run --rm`, a flood of output, a long queue, a storm of logins
	$(CARGO) bench --locked --bench overhead --bench flood --bench schedule --bench storm

test-fuzz: fuzz-parsers fuzz-api ## Fuzz what strangers can send, bounded to a few minutes

fuzz-parsers: ## Fuzz what reads a stranger's input
	@scripts/fuzz.sh

fuzz-api: ## Fuzz the User API from its own openapi.json (SEED, EXAMPLES)
	@scripts/setup.sh --fuzz
	$(CARGO) build --locked
	@scripts/fuzz-api.sh $(TARGET)/$(HOST)/debug/cynode

install: build ## Install into /usr/local/bin (PREFIX)
	install -D -m 0755 $(BINARY) $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/cynode

release: ## Make what is handed out, into dist/: the binary, its SHA-256 and SBOM
	@scripts/release.sh

clean: ## Remove what was built
	$(CARGO) clean
