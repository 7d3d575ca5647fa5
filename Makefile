# Needs Python >= 3.11, make and a network. uv is taken from the PATH, or else fetched into .venv.

PYTHON ?= python3
RUN := .venv/bin/python
STAMP := .venv/.installed
UV = $(shell uv --version >/dev/null 2>&1 && echo uv || echo .venv/bin/uv)
# Tests start many commands; without bytecode each of them would compile torch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-copies bench lint audit lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile
	@echo "  PYTHON=python3.12 after the target chooses the Python of a new .venv (make clean first)"

demo: $(STAMP) data/demo  ## draw a small data set, train, validate, write result.csv and the report
	$(RUN) main.py train --image-size=64 --max-epoch=12
	$(RUN) main.py val
	$(RUN) main.py test
	@echo "The pictures are in data/demo, the answers in result.csv; now open" \
		"$$(ls -td checkpoints/*/ | head -n 1)report.html"
	@echo "To see all of it in a browser: $(RUN) -m tensorboard.main --logdir checkpoints," \
		"or $(RUN) main.py board --replay=$$(ls -td checkpoints/*/ | head -n 1)"

data/demo: | $(STAMP)
	$(RUN) main.py prepare --source=demo

test: $(STAMP)  ## run the tests, those of training in float32 and in bfloat16
	$(RUN) -m pytest -n auto --dist loadfile
	TEST_PRECISION=bf16 $(RUN) -m pytest -n auto tests/test_train.py tests/test_run.py tests/test_resume.py \
		tests/test_augment.py tests/test_multi_label.py tests/test_train_options.py tests/test_fine_tuning.py \
		tests/distributed/test_distributed.py::test_after_the_kill_of_a_rank_the_run_goes_on_to_the_same_bits

test-copies: $(STAMP)  ## remove and add parts as docs/adapting.md says, on copies; run the suite on each
	$(RUN) -m pytest -m copies -o faulthandler_timeout=0  # each takes minutes

bench: $(STAMP) | data/demo  ## measure the speed; DATA=path/to/train and MODEL=ResNet34 change the case
	$(RUN) -m tests.benchmarks --data $(or $(DATA),data/demo/train) --model $(or $(MODEL),SqueezeNet)

lint: $(STAMP)  ## check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

audit: $(STAMP)  ## look for known holes in the packages of requirements.lock; needs a network
	$(UV) tool run pip-audit --strict --disable-pip --require-hashes -r requirements.lock

# Versions already in the lock stay where they can; delete it first to renew them all.
lock:  ## write requirements.lock anew after a change of requirements.txt
	@$(UV) --version >/dev/null 2>&1 || { $(venv) && $(pip-uv); }
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --quiet \
		--custom-compile-command "make lock" --output-file requirements.lock requirements.txt

clean:  ## remove .venv, caches and the demo pictures; checkpoints stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache data/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: where it is missing, an install was interrupted and .venv starts over.
$(STAMP): requirements.lock
	@test -e $@ || { $(venv); }
	@rm -f $@
	@$(UV) --version >/dev/null 2>&1 || $(pip-uv)
	$(UV) pip install --python $(RUN) --require-hashes -r requirements.lock
	@touch $@

fail = { echo "$(1)" >&2; exit 1; }
venv = { "$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null \
	|| $(call fail,Python 3.11 or newer is needed and $(PYTHON) is not: try PYTHON=python3.12 after the target); } \
	&& { "$(PYTHON)" -c "import ensurepip" 2>/dev/null \
	|| $(call fail,$(PYTHON) has no venv module: install it (Debian and Ubuntu: apt install python3-venv)); } \
	&& "$(PYTHON)" -m venv --clear .venv
pip-uv = $(RUN) -m pip install --quiet uv
