# Every target wraps a few plain commands; `make help` names them. One target
# directory, and always the same package list, so that nothing is compiled twice.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(HOME)/.cargo/bin:/usr/local/go/bin:$(PATH)
export CARGO_TARGET_DIR := $(CURDIR)/target
# A failed test ends with what is wrong, not with forty lines of where in the async runtime its error was made.
export RUST_LIB_BACKTRACE := 0

PACKAGES := $(addprefix -p ,slice-operator slice-netop slice-gateway slice-dns slicectl slice-e2e)
LAB := target/lab/weft-lab
# Clusters of `lab-up`, as NAME:NODES.
CLUSTERS ?= a:2,b:2
# lifecycle makes and kills a lab of its own: `test-lab`; upgrade wants two versions: `test-upgrade`.
E2E_TESTS := $(filter-out lifecycle upgrade,$(patsubst e2e/tests/%.rs,%,$(wildcard e2e/tests/*.rs)))
NETNS_TESTS := $(sort $(notdir $(basename $(patsubst %/main.rs,%.rs,$(filter-out e2e/%,$(wildcard */tests/*.rs */*/tests/*.rs */tests/*/main.rs))))))
# What links the eBPF programs, for the compiler of rust-toolchain.toml; netop/build.rs looks for it there.
BPF_LINKER := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/weft/bpf-linker-0.10.0
# helm as WEFT_HELM names it, as `make setup` builds it from source, or as it is installed.
FIND_HELM = $${WEFT_HELM:-$$(ls -t $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/weft/v*/bin/helm 2>/dev/null | head -n 1 || command -v helm || true)}
# T=lab runs the file e2e/tests/lab.rs; any other T runs the tests with that in their name.
E2E_FILES := $(if $(filter $(T),$(E2E_TESTS)),$(T),$(E2E_TESTS))
E2E_FILTER := $(if $(filter $(T),$(E2E_TESTS)),,$(T))

# What a release is of, and for which machines. ARCH=arm64 or amd64: another than this machine's is cross-built.
PROGRAMS := slice-operator slice-netop slice-cni slice-gateway slice-dns slicectl kubectl-slice weft-probe
HERE := $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(shell uname -m)))
ARCH := $(HERE)
CROSS = $(filter-out $(HERE),$(ARCH))
# An unpacked system of another architecture, for the images: `make root` makes it of Debian's packages; ROOT=DIR names one that is there.
ROOT = target/root-$(ARCH)
# The names of an architecture: Rust's, in a target; Debian's, in folders and programs; with dashes, in packages.
CPU_amd64 := x86_64
CPU_arm64 := aarch64
CPU = $(CPU_$(ARCH))
TARGET = $(CPU)-unknown-linux-gnu
CROSS_PACKAGES = gcc-$(subst _,-,$(CPU))-linux-gnu libc6-dev-$(ARCH)-cross
# A program of another architecture, run here; nothing where the architecture is this machine's.
QEMU = $(if $(CROSS),$(or $(shell command -v qemu-$(CPU)),$(shell command -v qemu-$(CPU)-static)) -L /usr/$(CPU)-linux-gnu)
# $(call cargo,VERB): cargo for $(ARCH); $(BUILT) is where the release profile's programs are then.
CARGO_TARGET_UPPER = CARGO_TARGET_$(shell echo $(TARGET) | tr a-z- A-Z_)
CROSS_CARGO = $(CARGO_TARGET_UPPER)_LINKER=$(CPU)-linux-gnu-gcc $(CARGO_TARGET_UPPER)_RUNNER='$(QEMU)' \
	CC_$(subst -,_,$(TARGET))=$(CPU)-linux-gnu-gcc cargo $(1) --target $(TARGET)
cargo = $(if $(CROSS),$(CROSS_CARGO),cargo $(1))
BUILT = $(if $(CROSS),target/$(TARGET)/release,target/release)

# $(call phase,NAME,COMMAND): says what runs and how long it took.
define phase
	@printf '\n==> %s\n' '$(1)'; start=$$SECONDS; result=0; $(2) || result=$$?; \
	verdict=done; [ $$result = 0 ] || verdict=FAILED; \
	printf '==> %s: %s after %dm%02ds\n' '$(1)' "$$verdict" $$(((SECONDS-start)/60)) $$(((SECONDS-start)%60)); \
	exit $$result
endef

.PHONY: help
help: ## Name the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: tools
tools:
	@command -v cargo >/dev/null || { echo 'no cargo: install Rust with rustup (https://rustup.rs); the version is in rust-toolchain.toml and Debian'"'"'s is too old'; exit 1; }
	@free=$$(df -Pk . | awk 'NR == 2 {print int($$4 / 1048576)}'); [ "$$free" -ge 20 ] || \
		echo "$$free GB are free here: build, clusters and tests take 20 together (cargo clean frees those of earlier builds)"
	@command -v cc >/dev/null || { echo 'no C compiler: apt-get install gcc libc6-dev (Rust links with it)'; exit 1; }
	@rustc --print sysroot | xargs -I{} test -f {}/lib/rustlib/src/rust/library/core/Cargo.toml || rustup component add rust-src \
		|| { echo 'no rust-src: the eBPF programs bring their own core library; add it with rustup component add rust-src'; exit 1; }
	@test -x $(BPF_LINKER)/bin/bpf-linker || { printf '\n==> bpf-linker, once per machine (2 min)\n'; \
		cargo install --quiet --locked --root $(BPF_LINKER) --target-dir target/bpf-linker bpf-linker@0.10.0 && rm -rf target/bpf-linker; }

# In one go: the lab's program alone would keep one core busy and the other waiting.
.PHONY: build
build: tools ## Build every program into target/lab
	$(call phase,build,cargo build --profile lab $(PACKAGES) --bins)

.PHONY: weft-lab
weft-lab: tools
	@test -x $(LAB) || $(MAKE) --no-print-directory build

.PHONY: setup
setup: build ## Once per machine: Debian packages, Kubernetes from source (12 min on 2 cores), images of the nodes
	$(call phase,setup,$(LAB) setup)

.PHONY: lab-up
lab-up: setup ## Start the clusters (CLUSTERS=a:2,b:2)
	$(call phase,lab up,$(LAB) up --clusters $(CLUSTERS))

.PHONY: lab-down
lab-down: weft-lab ## Remove the clusters and everything they made
	$(call phase,lab down,$(LAB) down)

.PHONY: images
images: build ## Write image tars of our programs into target/images
	$(call phase,images,$(LAB) images)

# Nothing to do for this machine's own architecture.
.PHONY: cross
cross: tools
	@case '$(ARCH)' in amd64 | arm64) ;; *) echo 'no architecture "$(ARCH)"; there are amd64 and arm64'; exit 1;; esac
	@test -z '$(CROSS)' || test -e "$$(rustc --print target-libdir --target $(TARGET))" || rustup target add $(TARGET) \
		|| { echo 'no Rust library for $(ARCH): add it with rustup target add $(TARGET)'; exit 1; }
	@test -z '$(CROSS)' || { command -v $(CPU)-linux-gnu-gcc >/dev/null && test -e /usr/$(CPU)-linux-gnu/lib/libc.so.6; } \
		|| $(call install,$(CROSS_PACKAGES),no compiler for $(ARCH))

.PHONY: qemu
qemu: cross
	@test -z '$(CROSS)' || command -v qemu-$(CPU) >/dev/null || command -v qemu-$(CPU)-static >/dev/null \
		|| $(call install,qemu-user,no emulator of $(ARCH))

# $(call install,PACKAGES,WHAT IS MISSING)
install = { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -q update && \
	apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $(1); } \
	|| { echo '$(2): on Debian, as root, apt-get install $(1)'; exit 1; }

# Packages of another architecture in a folder of their own: what this machine's dpkg has and knows stays as it is. Made
# anew by each release, so that it gets Debian's corrections.
APT = apt-get -qq -o APT::Architecture=$(ARCH) -o APT::Architectures=$(ARCH) \
	-o Dir::State=$(abspath $(ROOT)).apt -o Dir::State::status=$(abspath $(ROOT)).apt/status -o Dir::Cache=$(abspath $(ROOT)).apt
.PHONY: root
root: cross
ifeq ($(origin ROOT),file)
	@test -z '$(CROSS)' || (rm -rf $(ROOT) $(ROOT).apt && mkdir -p $(ROOT) $(ROOT).apt/lists/partial $(ROOT).apt/archives/partial && \
		touch $(ROOT).apt/status && \
		$(APT) update && $(APT) install -y --no-install-recommends --download-only nftables libgcc-s1 && \
		for package in $(ROOT).apt/archives/*.deb; do dpkg-deb -x "$$package" $(ROOT) || exit 1; done && \
		for folder in bin sbin lib lib64; do [ -e $(ROOT)/$$folder ] || ln -s usr/$$folder $(ROOT)/$$folder || exit 1; done && \
		rm -r $(ROOT).apt) || { echo 'no packages of Debian for $(ARCH) by this machine'"'"'s apt, see above: take an unpacked system of that' \
			'architecture with nftables (debootstrap --foreign) and name its folder with ROOT=DIR'; exit 1; }
endif

# slice-cni runs on the node itself, whatever C library that has: it brings its own.
.PHONY: programs
programs: cross
	$(call phase,programs for $(ARCH),$(call cargo,build) --locked --release $(PACKAGES) $(if $(CROSS),$(addprefix --bin ,$(PROGRAMS)),--bins) && \
		$(call cargo,rustc) --locked --release -p slice-netop --bin slice-cni -- -C target-feature=+crt-static)

.PHONY: release
release: root programs ## Write one tar of images, charts and slicectl with checksums into target/dist (ARCH=arm64 or amd64)
	$(call phase,release,$(if $(CROSS),cargo run --quiet --locked -p slice-e2e --bin weft-lab -- release --arch $(ARCH) --root $(ROOT) --from $(BUILT),\
		$(BUILT)/weft-lab release))

.PHONY: load
load: images ## Load our images into every node of the lab
	$(call phase,load,$(LAB) load target/images/*.tar)

.PHONY: reload
reload: images ## Rebuild, load and restart only what changed
	$(call phase,reload,$(LAB) reload)

.PHONY: crds
crds: tools ## Write the CRDs' YAML
	$(call phase,crds,cargo run -p slice-crds --bin crdgen -- crds/yaml)

.PHONY: check
check: tools ## Formatting, lints and charts
	$(call phase,fmt,cargo fmt --all --check)
	$(call phase,clippy,cargo clippy --workspace --all-targets -- -D warnings)
	$(call phase,eBPF programs,cd netop/ebpf && cargo fmt --check && RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$(CURDIR)/target/ebpf \
		cargo clippy --locked --release --target bpfel-unknown-none -Z build-std=core -- -D warnings)
	@$(MAKE) --no-print-directory check-charts

# Whether what they render is right for an API server, `make e2e T=charts` asks one. kubeconform would ask schemas that it
# fetches from elsewhere.
.PHONY: check-charts
check-charts: ## Lint and render the charts, by default and with each file in charts/*/ci (wants helm: make setup)
	@helm=$(FIND_HELM); \
	if [ -z "$$helm" ]; then printf '\n==> charts: NOT CHECKED, there is no helm here. `make setup` builds one; WEFT_HELM names another.\n'; exit 0; fi; \
	printf '\n==> charts, with %s\n' "$$helm"; log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	for chart in charts/*/; do for values in "$${chart}values.yaml" "$${chart}"ci/*.yaml; do for verb in 'lint --strict' template; do \
		"$$helm" $$verb "$$chart" --values "$$values" >"$$log" 2>&1 || { grep -v 'found symbolic link' "$$log" || true; \
			echo "==> charts: FAILED: $$helm $$verb $$chart --values $$values"; exit 1; }; \
	done; done; done; \
	echo '==> charts: done'

.PHONY: test-unit
test-unit: tools ## Tests that need nothing but the compiler
	$(call phase,unit tests,cargo test --workspace --lib --bins)
	$(call phase,documentation tests,cargo test --workspace --doc)

# Not part of `test`. The CNI plugin has no flags: it is asked what every runtime asks first.
VERSION = $(shell sed -n '/^\[workspace.package\]/,/^version/s/^version = "\(.*\)"/\1/p' Cargo.toml)
VERSIONS = (for program in $(filter-out slice-cni,$(PROGRAMS)); do $(QEMU) $(BUILT)/$$program --version | grep -F ' $(VERSION)' || \
	{ echo "$$program --version does not say $(VERSION)"; exit 1; }; done; \
	echo '{"cniVersion":"1.1.0"}' | CNI_COMMAND=VERSION $(QEMU) $(BUILT)/slice-cni | grep supportedVersions || \
	{ echo 'slice-cni does not answer VERSION'; exit 1; })
.PHONY: test-arm64
test-arm64: override ARCH := arm64
test-arm64: qemu programs ## On a machine that is none, under qemu-user: --version of every program, unit tests of crds, frame, proto
	$(call phase,versions of $(ARCH),$(VERSIONS))
	$(call phase,unit tests on $(ARCH),$(call cargo,test) -p slice-crds -p slice-frame --lib && \
		$(call cargo,test) -p slice-gateway --lib proto::)

.PHONY: test-netns
test-netns: tools ## Tests of one crate against the real kernel and files (root)
	$(call phase,tests in namespaces,cargo test --workspace $(addprefix --test ,$(NETNS_TESTS)) -- --test-threads=1)

.PHONY: test-lab
test-lab: lab-down setup ## The lab itself: comes, is killed, comes again, leaves nothing
	$(call phase,tests of the lab,cargo test --workspace --test lifecycle)

.PHONY: e2e
e2e: $(if $(WEFT_E2E_KUBECONFIG),tools,lab-up load) ## End-to-end tests on the lab, or on WEFT_E2E_KUBECONFIG (T=name runs one)
	$(call phase,end-to-end tests,cargo test --workspace $(addprefix --test ,$(E2E_FILES)) -- --test-threads=1 --nocapture $(E2E_FILTER))

UPGRADE := target/upgrade
.PHONY: test-upgrade
test-upgrade: lab-down setup ## Roll hub, members and agents from REF to here and back under traffic; builds REF in a worktree (REF=…)
	@test -n "$(REF)" || { echo 'which version to come from? make test-upgrade REF=TAG-OR-COMMIT'; exit 1; }
	@git worktree remove --force $(UPGRADE)/tree 2>/dev/null || true
	@git worktree prune && git worktree add --force --detach $(UPGRADE)/tree $(REF)
	$(call phase,build of $(REF),cd $(UPGRADE)/tree && CARGO_TARGET_DIR=$(CURDIR)/$(UPGRADE)/build cargo build --profile lab $(PACKAGES) --bins)
	@$(MAKE) --no-print-directory lab-up load
	@$(LAB) images --from $(UPGRADE)/build/lab --to $(UPGRADE)/images --tag ref operator netop gateway dns
	$(call phase,load $(REF),$(LAB) load $(UPGRADE)/images/*.tar)
	$(call phase,roll from $(REF) and back,WEFT_UPGRADE_SLICECTL=$(CURDIR)/$(UPGRADE)/build/lab/slicectl cargo test --workspace --test upgrade -- --nocapture)

.PHONY: test-matrix
test-matrix: setup images ## Connectivity, services and verify on every kind of network and cluster that the lab imitates (ROWS="dual loss")
	$(call phase,matrix,$(LAB) matrix $(ROWS))

.PHONY: test
test: ## Everything, from a clean machine: setup, lints, unit, namespaces, end to end
	@start=$$SECONDS; for phase in setup check test-unit test-netns test-lab e2e; do $(MAKE) --no-print-directory $$phase; done; \
	printf '\n==> all tests passed after %dm%02ds\n' $$(((SECONDS-start)/60)) $$(((SECONDS-start)%60))

.PHONY: demo
demo: ## Two clusters, one slice, and who can talk to whom
	@for step in setup lab-up load; do $(MAKE) --no-print-directory $$step; done
	$(call phase,demo,$(LAB) demo)

.PHONY: measure
measure: lab-up load ## Measure Weft with real pods on the lab (P=creation, attach, deployment, path or idle: only that)
	$(call phase,measure,$(LAB) measure $(P))

.PHONY: deny
deny: tools ## Licences, versions and origins of dependencies, and advisories about them (fetches the RustSec database)
	@command -v cargo-deny >/dev/null || { echo 'no cargo-deny: cargo install --locked cargo-deny'; exit 1; }
	$(call phase,licences and versions and origins,cargo deny --offline check licenses bans sources)
	$(call phase,advisories,cargo deny check advisories)

.PHONY: bench
bench: tools ## Measure the data path beside other carriers, as root, in 10 min (BENCH=--docs writes docs/ too)
	$(call phase,benchmark of the data path,cargo bench -p slice-gateway --bench datapath -- $(BENCH))

.PHONY: bench-failover
bench-failover: lab-up load ## Strike gateways under traffic, ROUNDS of each kind; 2.5 h for 100 (FAILOVER=--docs writes docs/ too)
	$(call phase,fail-over,$(LAB) failover --rounds $(or $(ROUNDS),100) $(FAILOVER))

# One node a cluster: the slices' gateways share it.
.PHONY: bench-qos
bench-qos: setup lab-down ## Measure what three slices get of one uplink, in a lab of its own; 8 min (QOS=--docs writes docs/ too)
	@$(MAKE) --no-print-directory lab-up load CLUSTERS=a:1,b:1
	$(call phase,three slices on one uplink,$(LAB) qos $(QOS))
	@$(MAKE) --no-print-directory lab-down

# One cluster with one node: all that runs beside the hub is its API server and the simulator of the members.
.PHONY: bench-scale
bench-scale: setup lab-down ## Measure both operators at scale; 15 min, in labs of their own (SCALE=--docs writes docs/ too)
	@$(MAKE) --no-print-directory lab-up load CLUSTERS=a:1
	$(call phase,hub: 250 clusters and 1000 slices,$(LAB) scale $(SCALE))
	@$(MAKE) --no-print-directory lab-down
	@$(MAKE) --no-print-directory lab-up load CLUSTERS=a:1
	$(call phase,member: 100 nodes and 50 slices,$(LAB) scale-member $(SCALE))
	@$(MAKE) --no-print-directory lab-down

.PHONY: bench-flood
bench-flood: tools ## Measure what a flood of bogus handshakes leaves of a flow; fails below four fifths
	$(call phase,flood,cargo bench -p slice-gateway --bench flood)

.PHONY: bench-idle
bench-idle: tools ## Measure what 500 peers cost a gateway that carries nothing (root, 1 min); fails above 2 % of a core
	$(call phase,an idle gateway,cargo bench -p slice-gateway --bench idle)

.PHONY: bench-agent
bench-agent: tools ## Measure the agent with 100 slices and 200 nodes: simulated objects, a real kernel (root, 1 min)
	$(call phase,an agent in a large cluster,cargo bench --profile lab -p slice-netop --bench agent)

.PHONY: bench-node
bench-node: tools ## Measure a frame on a node by the number of slices, beside a bare bridge and VXLAN (root, 5 min)
	$(call phase,cost of a frame on a node,cargo bench --profile lab -p slice-netop --bench node)

# Seconds that each fuzz target runs. What is found stays in slice-gateway/fuzz/artifacts.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := $(if $(T),$(T),$(basename $(notdir $(wildcard slice-gateway/fuzz/fuzz_targets/*.rs))))
# The target `gateway` runs whole networks in safe Rust: without the address sanitizer it does more than twice as many.
# Its scripts are never longer than 512 bytes.
FUZZ_OF_gateway ?= --sanitizer none --target-dir $(CURDIR)/target/fuzz-gateway
FUZZ_LEN_gateway := 512

.PHONY: fuzz
fuzz: tools ## Look for inputs that break a parser or the gateway (FUZZ_SECONDS=60 for each target, T=name runs one)
	@command -v cargo-fuzz >/dev/null || { echo 'no cargo-fuzz: cargo install --locked cargo-fuzz'; exit 1; }
	$(call phase,fuzz,(cd slice-gateway && export RUSTC_BOOTSTRAP=1 RUSTC_WRAPPER=$(CURDIR)/slice-gateway/fuzz/rustc.sh && \
		$(foreach target,$(FUZZ_TARGETS),mkdir -p $(CURDIR)/target/fuzz-corpus/$(target) && \
		cargo fuzz run $(FUZZ_OF_$(target)) $(target) $(CURDIR)/target/fuzz-corpus/$(target) fuzz/corpus/$(target) -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=$(or $(FUZZ_LEN_$(target)),4096) -timeout=20 &&) true))
