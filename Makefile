# Holdfast. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN   := $(CURDIR)/bin
TOOLS := $(BIN)/tools
OUT   := $(CURDIR)/out

# The commands hold no C code; only the race detector needs a C compiler, and the
# test runner asks for it. One setting for all the rest lets every target share
# what was compiled.
export CGO_ENABLED := 0

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo development)
GO_BUILD := go build -ldflags '-X github.com/holdfast-csi/holdfast/pkg/csi.Version=$(VERSION)' -o $(BIN)/

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: need-go ## Build the commands into bin/
	$(GO_BUILD) ./cmd/...

.PHONY: demo
demo: need-go ## Start a three-node Holdfast here and show the main job (root; KEEP=1 leaves it running)
	@test/prereqs.sh demo
	@$(GO_BUILD) ./cmd/... ./test/demo
	@exec $(BIN)/demo --bin $(BIN) $(if $(filter 1 yes true,$(KEEP)),--keep)

.PHONY: test
test: need-go ## Run all tests: unit, race, fuzz seeds, conformance, csi-sanity, integration (root)
	@test/prereqs.sh test
	@$(GO_BUILD) ./cmd/... ./test/runner
	@exec $(BIN)/runner --bin $(BIN)

.PHONY: sanity
sanity: need-go ## Run csi-sanity alone, against real processes (root)
	@test/prereqs.sh test
	@$(GO_BUILD) ./cmd/... ./test/runner
	@exec $(BIN)/runner --bin $(BIN) --only ./test/sanity/... --verbose

.PHONY: bench
bench: need-go ## Measure with fio, write out/bench*.json and the tables in the documents (root; takes a while)
	@test/prereqs.sh bench
	@$(GO_BUILD) ./cmd/... ./test/bench
	@mkdir -p $(OUT)
	@failed=0; $(BIN)/bench --bin $(BIN) --json $(OUT)/bench.json --readme README.md || failed=1; \
	  $(MAKE) bench-repair || failed=1; exit $$failed

# The build with the tag nobitmap is for comparison only: it keeps no write-intent
# bitmap. REPAIR adds flags, such as smaller sizes: see bin/bench --help.
.PHONY: bench-repair
bench-repair: need-go ## Measure resync, rebuild and detection of silence alone
	@test/prereqs.sh bench
	@$(GO_BUILD) ./cmd/... ./test/bench
	@mkdir -p $(OUT) $(BIN)/nobitmap
	@go build -tags nobitmap -o $(BIN)/nobitmap/ ./cmd/...
	@exec $(BIN)/bench --bin $(BIN) --repair --repair-nobitmap $(BIN)/nobitmap --json $(OUT)/bench-repair.json --repair-doc docs/repair.md $(REPAIR)

SEEDS ?= 1000

.PHONY: explore
explore: need-go ## Explore every state of small worlds around the mirror's state machine (minutes)
	@go build -o $(BIN)/ ./test/proof
	@exec $(BIN)/proof explore

.PHONY: sim
sim: need-go ## Simulate a cluster from SEEDS=1000 new seeds
	@go build -o $(BIN)/ ./test/proof
	@exec $(BIN)/proof sim --seeds $(SEEDS)

.PHONY: mutants
mutants: need-go ## Break the rules one at a time: explorer or simulator must notice (minutes)
	@go build -o $(BIN)/ ./test/proof
	@exec $(BIN)/proof mutants

.PHONY: check
check: need-go ## Build, vet, lint, formatting, generated files, go.mod, links in the docs
	@test/prereqs.sh check
	go build ./...
	go vet ./...
	@failed=0; $(MAKE) lint || failed=1; test/check.sh $(TOOLS) || failed=1; exit $$failed

.PHONY: lint
lint: need-go tools ## Run golangci-lint with the rules in .golangci.yml
	@$(TOOLS)/golangci-lint run --allow-parallel-runners ./...

.PHONY: generate
generate: need-go tools ## Generate code from the .proto files
	@test/prereqs.sh check
	PATH=$(TOOLS):$$PATH protoc --proto_path=. --go_out=. --go_opt=paths=source_relative \
	  --go-grpc_out=. --go-grpc_opt=paths=source_relative $$(find pkg -name '*.proto' | sort)

.PHONY: clean
clean: ## Remove what was built here
	rm -rf $(BIN) $(OUT)

# The tools' versions are pinned in a module of their own: golangci-lint alone
# would bring hundreds of lines into the product's go.mod. The first build takes
# minutes.
.PHONY: tools
tools:
	@mkdir -p $(TOOLS)
	@[ -x $(TOOLS)/golangci-lint ] || echo "building the pinned tools of tools/go.mod; the first time takes some minutes"
	@cd tools && go build -o $(TOOLS)/ tool

.PHONY: need-go
need-go:
	@command -v go >/dev/null || { echo "Go $$(sed -n 's/^go //p' go.mod) or newer is needed on the PATH (see README.md)"; exit 1; }
