# Thin over bootstrap.py, which needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
ARGS ?=
JOBS := setup demo test check fix serve bench lock

.DEFAULT_GOAL := help
.PHONY: help $(JOBS)

help:
	@$(PYTHON) bootstrap.py --help

$(JOBS):
	@$(PYTHON) bootstrap.py $@ $(ARGS)

# Kills and damages on purpose: 100 jobs, 300 kills, 200 damaged states; about 5 minutes. ARGS="--jobs 3 --kills 9" is a try;
# with ARGS="--json FILE" an interrupted one goes on where it was.
.PHONY: chaos-train
chaos-train:
	@$(PYTHON) bootstrap.py bench chaos_train $(ARGS)

# Requests made from the API's own schema against a live server, 5,000 instead of the suite's 300; about five minutes.
.PHONY: fuzz-api
fuzz-api:
	@SMEDJE_API_CASES=5000 $(PYTHON) bootstrap.py test tests/contract/test_api_cases.py -n0 -s --timeout 3600 $(ARGS)

# Random schedules against each request alone, 1,000 requests in four arrangements instead of the suite's 150.
.PHONY: chaos-engine
chaos-engine:
	@SMEDJE_ENGINE_REQUESTS=1000 $(PYTHON) bootstrap.py test tests/numerics/test_engine_schedules.py -n0 -s --timeout 3600 $(ARGS)

# The quota ledger's random sequences, 10,000 instead of the suite's 500; about ten minutes.
.PHONY: chaos-quota
chaos-quota:
	@SMEDJE_QUOTA_SEQUENCES=10000 $(PYTHON) bootstrap.py test tests/unit/test_services_quotas.py --timeout 3600 $(ARGS)

# Kills clients and servers in the middle of uploads, and measures the server's memory under a large one; about four minutes.
.PHONY: chaos-upload
chaos-upload:
	@$(PYTHON) bootstrap.py bench chaos_upload $(ARGS)

# A thousand clients that hang up, a thousand streams at once, a thousand requests at a limit, kill -9 of engine and server
# under load; about three minutes.
.PHONY: chaos-serve
chaos-serve:
	@$(PYTHON) bootstrap.py bench chaos_serve $(ARGS)

# A deployment's whole life on a live server, told line by line; half a minute.
.PHONY: deployment-life
deployment-life:
	@$(PYTHON) bootstrap.py test tests/e2e/test_deployment_story.py -n0 -s $(ARGS)

# A tuned model as GGUF, read back by llama.cpp (fetched into an environment of its own) and transformers; three minutes.
.PHONY: gguf-read-back
gguf-read-back:
	@$(PYTHON) bootstrap.py bench gguf_read_back $(ARGS)

# The unmodified npm package against a live server; fetches it into a temporary folder, and needs node and npm.
.PHONY: clients-node
clients-node:
	@SMEDJE_TEST_NODE=1 $(PYTHON) bootstrap.py test tests/e2e/test_clients.py -k npm $(ARGS)

# The engine contract on vLLM itself, in an environment of its own that is made on first use (several GB); five minutes.
.PHONY: engines-vllm
engines-vllm:
	@$(PYTHON) bootstrap.py bench engines_vllm $(ARGS)
