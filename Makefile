# The commands of the repository. Each installs what it lacks (apt, cargo, pip), says so, and keeps it.
# What they keep outside target/ is in ~/.cache/backendai-agent, which may be removed at any time.
.PHONY: help demo check test bench cross-arm64 krunner-layer clean-cache
RUNTIME ?= youki

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## run Python in a container, from nothing: make demo [RUNTIME=youki]
	@scripts/demo.sh $(RUNTIME)

check: ## formatting, lints, documentation, dependencies, unit tests: minutes, no services
	@scripts/check.sh

test: ## everything (engines, the real 19.03.3 manager, the virtual machine); one engine: make test RUNTIME=docker [DEBIAN=sid] [STORE=containerd] [HANDLER=youki]; RUNTIME=youki ROOTLESS=yes
ifeq ($(origin RUNTIME), file)
	@scripts/test.sh
else
	@scripts/test.sh --runtime $(RUNTIME) --debian "$(DEBIAN)" --store "$(STORE)" --handler "$(HANDLER)" --rootless "$(ROOTLESS)"
endif

bench: ## measure; writes target/bench.json and a table
	@scripts/bench.sh

cross-arm64: ## build for arm64 on a machine of another kind (with rustup); what comes out is not run
	@scripts/cross.sh

krunner-layer: ## the runner inside kernels as an OCI image layout: make krunner-layer [OUT=target/krunner-image]
	@scripts/krunner-layer.sh $(OUT)

clean-cache: ## remove what the commands keep outside target/
	rm -rf "$${BACKENDAI_CACHE:-$$HOME/.cache/backendai-agent}"
