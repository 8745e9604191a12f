# make demo   the engine answers real prompts
# make test   the project's tests
# make quick  the fast ones among them
# make prove  the long ones: judge against tests, wrong solutions, every cheat at every level, a cohort that is killed and goes on
# make check  lint and types
# make notebooks  runs them again and keeps what they print; draws the film at the top of README.md
# make clean  removes the environment
#
# All make and use .venv, and can be repeated. Another Python: make demo PYTHON=/path/to/python3.12
# More for pytest: make test PYTEST_OPTIONS=--durations=20

SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c '$(SUPPORTED)' 2>/dev/null && { echo "$$p"; break; }; done)
RUN = .venv/bin/python

# -rs: at the end a line for each reason why tests were skipped
TESTS = $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rs $(PYTEST_OPTIONS)

.PHONY: demo test quick prove check notebooks clean

demo: .venv/installed
	@cd labs/lab02_online_serving && ../../$(RUN) solution.py
	@echo
	@$(RUN) -m nano_qwen3_serving chat "What is a KV cache?" "Why does a server batch requests?" "Tell me a story"

test: .venv/developing
	@$(TESTS) -m "not proof"

quick: .venv/developing
	@$(TESTS) -m "not slow and not proof"

prove: .venv/developing
	@$(TESTS) -m proof

check: .venv/developing
	@$(RUN) -m ruff check
	@$(RUN) -m mypy

notebooks: .venv/installed
	@$(RUN) -m nano_qwen3_serving.pictures.at_work reference_engine/at_work.svg
	@$(RUN) -m nano_qwen3_serving.pictures.journey notebooks/*.ipynb
	@$(RUN) -m nbconvert --to notebook --execute --inplace --log-level WARN --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

clean:
	rm -rf .venv

.venv/developing: .venv/installed requirements-dev.txt grading/requirements.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch .venv/developing

.venv/installed: requirements.txt reference_engine/requirements.txt notebooks/requirements.txt pyproject.toml
	@"$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null || { echo "Python 3.11, 3.12 or 3.13 is missing: install one from python.org, or say where it is: make PYTHON=/path/to/python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "The venv module is missing; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@"$(PYTHON)" -c 'import shutil, sys; sys.exit(shutil.disk_usage(".").free < 3e9)' || { echo "The disk is nearly full: the course needs about 3 GB here, and 8 GB with a CUDA build of torch"; exit 1; }
	@$(RUN) -c '$(SUPPORTED)' 2>/dev/null || "$(PYTHON)" -m venv --clear .venv
	@echo "Installing the course into .venv (the first time, torch takes a few minutes)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch .venv/installed
