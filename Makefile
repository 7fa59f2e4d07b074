# Two commands do all the set-up on a machine that has Swift:
#   make demo   builds the release, replays the bundled kernel traces, compares with the bundled
#               measurements of real KVM, tells the mail thread's story
#   make test   builds and runs the tests
# The rest is for those who work on physmem.

SWIFT ?= swift
PACKAGES = libnuma-dev zlib1g-dev
FIXTURES = Tests/PMReplayTests/Fixtures
TABLES = Tests/PMConformTests/Fixtures
PHYSMEM = .build/release/physmem
SOURCES = Package.swift Sources Tests Benchmarks

.PHONY: demo test setup setup-profile build format lint docs bench instructions test-release \
  test-thread test-address build-sanitized test-planted test-qemu setup-qemu fuzz library install deb test-abi setup-examples examples clean

demo: build
	@$(PHYSMEM) replay $(FIXTURES)/*.trace.gz
	@echo
	@$(PHYSMEM) conform kvm $(TABLES)/*.tsv
	@echo
	@$(PHYSMEM) kvm story

test: setup
	$(SWIFT) test $(BUILD_FLAGS)

# Installs what is missing, and says so; asks for nothing where all is there.
setup:
	@command -v $(SWIFT) >/dev/null || { echo "physmem needs Swift 6.2 or later: https://swift.org/install"; exit 69; }
	@missing=""; \
	for package in $(PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'install ok' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	  if ! command -v apt-get >/dev/null; then \
	    if [ -e /usr/include/numa.h ] && [ -e /usr/include/zlib.h ]; then exit 0; fi; \
	    echo "missing: the headers of libnuma and zlib; install them with this system's package manager"; exit 69; \
	  fi; \
	  echo "installing$$missing"; \
	  if [ "$$(id -u)" = 0 ]; then root=""; else root="sudo"; fi; \
	  $$root apt-get install -y -q --no-install-recommends $$missing >/dev/null 2>&1 \
	    || { $$root apt-get update -q >/dev/null && $$root apt-get install -y -q --no-install-recommends $$missing >/dev/null; } \
	    || { echo "could not install$$missing; as root: apt-get install$$missing"; exit 69; }; \
	fi

# What counting instructions needs besides.
setup-profile: setup
	@command -v valgrind >/dev/null || $(MAKE) --no-print-directory setup PACKAGES=valgrind
	@command -v valgrind >/dev/null \
	  || { echo "could not install valgrind; install it with this system's package manager"; exit 69; }

# What the adapters' examples need besides.
setup-examples: setup
	@$(MAKE) --no-print-directory setup PACKAGES="pkg-config libunicorn-dev python3-numpy python3-pip python3-setuptools mypy"
	@command -v rustc >/dev/null || $(MAKE) --no-print-directory setup PACKAGES=rustc

# What the examples with QEMU need besides; with it `make test` asks QEMU and its storage daemon, too.
setup-qemu: setup
	@$(MAKE) --no-print-directory setup PACKAGES="qemu-system-x86 qemu-system-common libc6-dev gcc cpio jq"

build: setup
	$(SWIFT) build -c release --product physmem

# The C library alone, ready to use, in $(OUT): libphysmem.so.0, libphysmem.a.
SCRATCH ?= .build
OUT ?= $(SCRATCH)/install
library: setup
	.install/library $(OUT) $(SCRATCH)

# Library, header, pkg-config file, command, manual and completions below PREFIX; what is installed needs neither
# Swift nor this folder. DESTDIR is put before it, as packagers do.
PREFIX ?= /usr/local
LIBDIR ?= lib
AT = $(DESTDIR)$(PREFIX)
install: library
	.install/command $(OUT) $(SCRATCH)
	.install/manual $(OUT) $(SCRATCH)
	install -d $(AT)/bin $(AT)/include $(AT)/$(LIBDIR)/pkgconfig $(AT)/share/man/man1 \
	  $(AT)/share/bash-completion/completions $(AT)/share/zsh/site-functions \
	  $(AT)/share/fish/vendor_completions.d
	install -m 755 $(OUT)/physmem $(AT)/bin/
	install -m 644 CShim/abi/include/physmem.h $(AT)/include/
	install -m 644 Adapters/Unicorn/physmem-unicorn.h $(AT)/include/
	install -m 644 $(OUT)/libphysmem.so.0 $(OUT)/libphysmem.a $(AT)/$(LIBDIR)/
	ln -sf libphysmem.so.0 $(AT)/$(LIBDIR)/libphysmem.so
	sed -e 's,@PREFIX@,$(PREFIX),; s,@LIBDIR@,$(LIBDIR),' -e "s,@VERSION@,$$($(OUT)/physmem --version)," \
	  .install/physmem.pc.in >$(AT)/$(LIBDIR)/pkgconfig/physmem.pc
	install -m 644 $(OUT)/man/*.1 $(AT)/share/man/man1/
	install -m 644 $(OUT)/completions/physmem.bash $(AT)/share/bash-completion/completions/physmem
	install -m 644 $(OUT)/completions/_physmem $(AT)/share/zsh/site-functions/
	install -m 644 $(OUT)/completions/physmem.fish $(AT)/share/fish/vendor_completions.d/

# Debian packages, in $(DEBS).
DEBS ?= $(SCRATCH)/deb
TRIPLET = $(shell gcc -print-multiarch)
deb:
	rm -rf $(SCRATCH)/stage
	$(MAKE) --no-print-directory install PREFIX=/usr LIBDIR=lib/$(TRIPLET) DESTDIR=$(SCRATCH)/stage
	.install/deb $(DEBS) $(SCRATCH)/stage

# The C library as embedders get it: what it needs and exports, programs in C and C++, abuse.
test-abi: library
	.ci/abi $(OUT)

# The long form of the tests: a release build takes more steps (a million in the allocator's lockstep).
# RELEASE_TESTS picks some.
RELEASE_TESTS ?= .
test-release: setup
	$(SWIFT) test -c release -Xswiftc -enable-testing --filter '$(RELEASE_TESTS)'

# Without what runs on one thread only and for long.
THREAD = --scratch-path .build-thread --sanitize=thread -Xcc -DPM_THREAD_SANITIZER --disable-xctest $(BUILD_FLAGS)
test-thread: setup
	PHYSMEM_SANITIZED_PART=1 $(SWIFT) test $(THREAD) --skip '\.(LockstepTests|RoutesTests|BootTests|SnapshotTests|GuestPropertyTests|TruthTableTests|MemslotSetTests)/' \
	  --filter 'PMArenaTests|PMFramesTests|PMPageAllocatorTests|PMHostMapTests|PMGuestMapTests|PMGuestMemoryTests|PMExportTests|PMVhostUserTests|PMStressTests'

# With the leak check where worlds are made and given back as users do; the fixtures of the mapping tests
# keep themselves alive (an observer's closure holds its fixture), so that theirs run without it.
ADDRESS = --scratch-path .build-address --sanitize=address --disable-xctest $(BUILD_FLAGS)
# ADDRESS_TESTS picks some of the first.
ADDRESS_TESTS ?= PMArenaTests|PMFramesTests|PMPageAllocatorTests|PMGuestMemoryTests|PMCInterfaceTests|PMExportTests|PMVhostUserTests|PMStressTests
test-address: setup
	ASAN_OPTIONS=detect_leaks=1 LSAN_OPTIONS=suppressions=$(CURDIR)/.ci/leaks \
	  PHYSMEM_SANITIZED_PART=1 $(SWIFT) test $(ADDRESS) --filter '$(ADDRESS_TESTS)'
	ASAN_OPTIONS=detect_leaks=0 PHYSMEM_SANITIZED_PART=1 $(SWIFT) test $(ADDRESS) --skip-build \
	  --filter 'PMHostMapTests|PMGuestMapTests'

# What these two and `test-planted` run, built and nothing more.
build-sanitized:
	PHYSMEM_SANITIZED_PART=1 $(SWIFT) build --build-tests $(THREAD)
	PHYSMEM_SANITIZED_PART=1 $(SWIFT) build --build-tests $(ADDRESS)
	BUILD_FLAGS="$(BUILD_FLAGS)" .ci/planted --build

# `physmem stress` of a build with planted bugs (CShim/include/pm_planted.h) finds each of them.
test-planted: setup
	.ci/planted

# Installs into a folder of its own, then builds and runs every adapter's example against that.
EXAMPLES_PREFIX = $(CURDIR)/.build-examples
examples: setup-examples
	@$(MAKE) --no-print-directory install PREFIX=$(EXAMPLES_PREFIX)
	Adapters/run $(EXAMPLES_PREFIX)

# QEMU and its storage daemon on memory of ours.
test-qemu: setup-qemu
	.ci/qemu

# libFuzzer with AddressSanitizer over memslot arguments, guest operations, tables and the C
# interface, side by side.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS = FuzzMemslots FuzzGuest FuzzTables FuzzInterface
fuzz: setup
	$(SWIFT) build --package-path Tests/Fuzz --scratch-path .build-fuzz -c release \
	  --sanitize=address --sanitize=fuzzer
	@pids=""; \
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p .build-fuzz/corpus/$$target; \
	  echo "fuzzing: $$target, $(FUZZ_SECONDS) s"; \
	  .build-fuzz/release/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=25 \
	    -verbosity=0 -print_final_stats=1 -artifact_prefix=.build-fuzz/$$target- \
	    .build-fuzz/corpus/$$target >.build-fuzz/$$target.log 2>&1 & \
	  pids="$$pids $$!"; \
	done; \
	status=0; \
	for pid in $$pids; do wait $$pid || status=1; done; \
	for target in $(FUZZ_TARGETS); do \
	  echo "$$target:"; tail -n 40 .build-fuzz/$$target.log; \
	done; \
	exit $$status

format:
	$(SWIFT) format --in-place --recursive $(SOURCES)

lint:
	$(SWIFT) format lint --strict --recursive $(SOURCES)

# Documentation of every module, warnings as errors.
docs: setup
	.ci/docs

bench: build
	$(PHYSMEM) bench

# Instructions of the hot operations against the stored counts; `.ci/instructions --store` stores new ones.
instructions: setup-profile
	.ci/instructions

clean:
	rm -rf .build .build-*
