# honestseg: `make` alone renders the embedded scenes, trains, diagnoses, evaluates, and ends with the report's path.
# `make help` explains targets and variables.

DATASET ?= streets
DATA    ?= $(if $(filter streets,$(DATASET)),data/streets)
RECIPE  ?= $(wildcard recipes/$(DATASET).args)
RUN     ?= runs/$(shell printf %s '$(DATASET)' | sed 's/:[^,]*//g; s/,/+/g; s|/|-|g')
DEVICE  ?= auto
ARGS    ?=
TABLE   ?= imbalance
VENV    ?= .venv
PYTHON  ?= python3

PY      := $(VENV)/bin/python
AT      := $(if $(DATA),--data-dir $(DATA))
TRAIN   := $(PY) train.py $(addprefix @,$(RECIPE)) --dataset $(DATASET) $(AT) --run-dir $(RUN) --device $(DEVICE)

.PHONY: all help setup download train diagnose evaluate test bench ablation clean
.DEFAULT_GOAL := all

all: $(RUN)/.evaluated ## the whole chain on DATASET; fails at its end if diagnose found a fault
	@echo "report: $(RUN)/report.html"
	@exit $$(cat $(RUN)/.diagnosed)

help: ## this text
	@echo "targets:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | column -t -s '|'
	@echo "variables (make train DATASET=camvid DATA=~/camvid):"
	@echo "  DATASET   which data set or sets (A,B), and by default which recipe and run folder     ($(DATASET))"
	@echo "  DATA      where it lies, or they (DIR,DIR)                                          ($(or $(DATA),data/NAME))"
	@echo "  RECIPE    file of flags                                                             ($(RECIPE))"
	@echo "  RUN       run folder                                                                ($(RUN))"
	@echo "  DEVICE    auto, cpu, cuda, cuda:N                                                   ($(DEVICE))"
	@echo "  ARGS      more flags for the script of the target, typed as by hand"
	@echo "  TABLE     of make ablation: imbalance, pyramid or remedies                         ($(TABLE))"
	@echo "  VENV      virtual environment                                                       ($(VENV))"
	@echo "  PYTHON    interpreter that makes it, 3.10 or later                                  ($(PYTHON))"

setup: $(VENV)/.installed ## make VENV with the run-time packages and the dev extra

$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV): a minute or two, about 5 GB with the CUDA build of torch"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check ".[dev]"
	@rm -rf build honestseg.egg-info
	@touch $@

download: $(VENV)/.installed ## put DATASET into DATA
	$(PY) download.py $(DATASET) $(AT) $(ARGS)

ifeq ($(DATASET),streets)
$(DATA): | $(VENV)/.installed
	$(PY) download.py streets --data-dir $@

train: | $(DATA)
endif

train: $(VENV)/.installed ## train into RUN, or go on where it stopped
	@if [ -f $(RUN)/last.pth ]; then $(PY) train.py --run-dir $(RUN) --resume --device $(DEVICE) $(ARGS); \
	else $(TRAIN) $(ARGS); fi
	@touch $(RUN)/.trained

$(RUN)/.trained: | $(VENV)/.installed
	@$(MAKE) --no-print-directory train

diagnose: $(VENV)/.installed ## all probes that train nothing on RUN's best checkpoint
	$(PY) diagnose.py --ckpt $(RUN)/best.pth --device $(DEVICE) $(ARGS)

# A fault found (exit code 1) is a result: evaluate still runs, and the code comes last.
$(RUN)/.diagnosed: $(RUN)/.trained
	@$(PY) diagnose.py --ckpt $(RUN)/best.pth --device $(DEVICE); code=$$?; \
	[ $$code -le 1 ] || exit $$code; echo $$code > $@

evaluate: $(VENV)/.installed ## the test split's numbers, pictures and report.html
	$(PY) evaluate.py --ckpt $(RUN)/best.pth --device $(DEVICE) $(ARGS)

$(RUN)/.evaluated: $(RUN)/.diagnosed
	@$(PY) evaluate.py --ckpt $(RUN)/best.pth --device $(DEVICE)
	@touch $@

# One thread each: tests start processes of their own, and threads that wait for each other crawl on a busy machine.
test: $(VENV)/.installed ## everything CI runs: lint, format, all tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest $(ARGS)

bench: $(VENV)/.installed ## benchmarks of speed against the plain recipe
	$(PY) benchmarks/throughput.py $(ARGS)

ablation: $(VENV)/.installed ## a table of what choices are worth: TABLE=imbalance (streets), pyramid, remedies (DATASET=camvid)
	$(PY) benchmarks/ablation.py $(TABLE) --data-dir $(or $(DATA),data/$(DATASET)) --device $(DEVICE) $(ARGS)

clean: ## remove the run folder RUN
	rm -rf $(RUN)
