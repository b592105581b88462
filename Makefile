# Thirteen targets, each a line that a person could type.

# One set of flags for all, so that what one target compiled the next one finds
# in the build cache: pebble and sqlite take minutes the first time.
export CGO_ENABLED := 0
export GOFLAGS := $(strip $(GOFLAGS) -trimpath)

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 5s
SEEDS    ?= 2000
COUNT    ?= 20

# The S3 server of the tests; internal/s3test looks for this file.
VERSITYGW := .cache/tools/versitygw-v1.8.0

# The runtime of Workers, pinned in test/workerd/package-lock.json.
WORKERD := $(CURDIR)/test/workerd/node_modules/workerd/bin/workerd

.PHONY: build run fleet check test race fuzz sim compat chaos bench demo deps
.NOTPARALLEL:

build: ## the one static binary, bin/nearkey
	go build -ldflags '-s -w -X main.version=$(VERSION)' -o bin/nearkey ./cmd/nearkey

run: build ## a durable Workers KV on 127.0.0.1:8790 and Workers on 8791, data in ./nearkey-data
	@command -v npm >/dev/null && $(MAKE) --no-print-directory test/workerd/node_modules/.package-lock.json || echo "make: without npm there is no workerd: KV runs, Workers do not"
	NEARKEY_WORKERS_RUNTIME="$${NEARKEY_WORKERS_RUNTIME:-$$(ls $(WORKERD) 2>/dev/null)}" ./bin/nearkey serve

fleet: build ## a centre, two regions and three edges, each its own process, and a table
	./bin/nearkey dev --edges 3 --regions 2 --listen 127.0.0.1:8790

check: ## what a reviewer need not look at: format, vet, linters, the rules of the house
	@files=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')) && test -z "$$files" || { echo "gofmt: not formatted: $$files"; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	cd test/compat && go vet ./... && $$(cd ../.. && go tool -n staticcheck) -checks inherit,-SA1019 ./... # a deprecated call is what an old program makes
	@.ci/govulncheck
	go test -run House .

test: check build deps ## everything; what continuous integration runs
	NEARKEY_BIN=$(CURDIR)/bin/nearkey go test -count=1 -timeout 20m ./...
	$(MAKE) race
	$(MAKE) fuzz
	$(MAKE) compat

race: ## the tests of what runs in one process, under the race detector
	CGO_ENABLED=1 go test -race -timeout 20m ./kv/... ./store/disk ./store/memory ./catalog/... ./gateway ./api/... ./client/... ./cmd/... ./workerd/... ./internal/...

fuzz: ## every fuzz target for FUZZTIME
	@.ci/fuzz $(FUZZTIME)

sim: ## the seeded random tests: power losses, gateways and fleets for SEEDS seeds, the laws of stores COUNT times, a fleet of 300
	go test -count=1 -timeout 60m -run PowerLoss ./store/disk -crash-seeds $(SEEDS)
	go test -count=$(COUNT) -timeout 60m -run Laws ./store/... ./edge
	go test -count=1 -timeout 60m -v -run 'Seeds|Fleet|Replays|Consistency' ./test/sim -sim-seeds $(SEEDS) -sim-fleet

compat: build deps ## real clients against the real binary
	cd test/compat && NEARKEY_BIN=$(CURDIR)/bin/nearkey go test -count=1 -timeout 20m ./...

chaos: build deps ## two providers, each part killed, frozen, filled, slowed and cut under load; a verdict for each invariant
	NEARKEY_BIN=$(CURDIR)/bin/nearkey go run ./test/chaos $(CHAOS)

demo: build deps ## real files through the API, a kill -9 half-way, every byte verified
	NEARKEY_BIN=$(CURDIR)/bin/nearkey go run ./test/demo

bench: build bench/peers/node_modules/.package-lock.json test/compat/node_modules/.package-lock.json test/workerd/node_modules/.package-lock.json ## the table of bench/README.md
	@command -v nginx >/dev/null || { apt-get update && apt-get install -y --no-install-recommends nginx-light; }
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || { apt-get update && apt-get install -y --no-install-recommends postgresql; }
	go build -o bin/bench ./bench
	./bin/bench $(BENCH)

deps: test/compat/node_modules/.package-lock.json test/wrangler/node_modules/.package-lock.json test/workerd/node_modules/.package-lock.json $(VERSITYGW) ## what the tests need beyond Go
	@command -v curl >/dev/null || { apt-get update && apt-get install -y --no-install-recommends curl; }
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || { apt-get update && apt-get install -y --no-install-recommends postgresql; }
	@command -v cc >/dev/null || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; }
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { apt-get update && apt-get install -y --no-install-recommends chromium; }

%/node_modules/.package-lock.json: %/package-lock.json
	@command -v npm >/dev/null || { echo "make: the tests need Node.js 20 or newer with npm"; exit 1; }
	cd $* && npm ci --no-fund --no-audit
	@touch $@

$(VERSITYGW):
	GOBIN=$(CURDIR)/.cache/tools go install github.com/versity/versitygw/cmd/versitygw@$(lastword $(subst -, ,$@))
	mv .cache/tools/versitygw $@
