"""GGUF exports read back by others: python benchmarks/gguf_read_back.py [--base FOLDER] [--tokens 32] [--json FILE]

A live server tunes the embedded model for a few steps, answers 16 prompts greedily, and the tuned model is exported as
f32 and f16 GGUF with `smedje models export`. Each file is read by llama.cpp (the cyllama wheel, in an environment of
its own that is made on first use) and by transformers: the prompts' ids, the chat template and the answers must be
those of the server. Then a space is planted in the base model's chat template: another deployment and another export
must be refused. Exits 1 when anything is wrong. An answer that differs tells how near the two tokens were.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _peers import write_report
from serve_cpu_servers import environment
from tests.server_process import KEY, ServerProcess, finished

from smedje.chat.template import render_prompt
from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer

MODEL = "smollm2-135m-instruct"
ROOT = Path(__file__).resolve().parent
QUESTIONS = (
    "What is the capital of Norway?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is 7 times 8?",
    "Translate 'good morning' into French.",
    "Who wrote Hamlet?",
    "Give me a name for a cat.",
    "Why is the sky blue?",
    "List two uses of salt.",
    "What comes after Tuesday?",
    "Say hello in Spanish: ¡…!",
    "What do bees make?",
    "Finish: once upon a time",
    "Is fire hot or cold?",
    "My 2 parcels are late, øl & 東京!",
    "def add(a, b):\n    return",
)


def install(home: Path, base: Path | None) -> Path:
    """A copy of the base model that may be spoilt; its weights are not copied."""
    if base is None:
        command = [sys.executable, "-m", "smedje.cli", "models", "pull", MODEL]
        subprocess.run(command, env={**os.environ, "SMEDJE_HOME": str(home)}, check=True, capture_output=True)
        return home / "models" / MODEL
    folder = home / "models" / base.name
    folder.mkdir(parents=True)
    for file in base.resolve().iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, folder / file.name)
    return folder


def tune(server: ServerProcess, name: str, steps: int) -> str:
    """The name of a model tuned for so many steps."""
    with server.client() as client:
        more = {"lora_rank": 16, "max_steps": steps, "validation_fraction": 0}
        job = finished(client, server.submit(client, model=name, extra_body={"smedje": more}).id, seconds=400)
    if job.fine_tuned_model is None:
        raise SystemExit(f"the job failed: {job.error}")
    return job.fine_tuned_model


def served(server: ServerProcess, model: str, tokenizer: ChatTokenizer, tokens: int) -> list[dict[str, Any]]:
    """Each question's prompt as text and ids, the server's greedy answer, and how far its tokens led."""
    found = []
    with server.client() as client:
        for question in QUESTIONS:
            answer = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                max_tokens=tokens,
                temperature=0,
                logprobs=True,
                top_logprobs=2,
            ).choices[0]
            assert answer.logprobs is not None
            tops = [token.top_logprobs for token in answer.logprobs.content or ()]
            leads = [top[0].logprob - top[1].logprob for top in tops]
            ids = list(render_prompt(tokenizer, [{"role": "user", "content": question}]))
            text = tokenizer.decode(ids, skip_special=False)
            found.append({"prompt": ids, "text": text, "answer": answer.message.content, "leads": leads})
    return found


def by_llama(path: Path, asked: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """What llama.cpp says."""
    told = {"gguf": str(path), "threads": os.cpu_count(), "prompts": [one["text"] for one in asked], "tokens": tokens}
    command = [str(environment("llama") / "python"), str(ROOT / "gguf_read_back_llama.py"), json.dumps(told)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"llama.cpp: {done.stderr[-600:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def by_transformers(path: Path, asked: list[dict[str, Any]], tokens: int, stops: list[int]) -> dict[str, Any]:
    """What transformers says, from its own reading of weights and tokenizer, in f32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    pieces = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    answers = []
    for one in asked:
        prompt = pieces(one["text"], add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            mask = torch.ones_like(prompt)
            said = model.generate(
                prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False, eos_token_id=stops
            )
        rest = said[0, prompt.shape[1] :].tolist()
        answers.append({"prompt": prompt[0].tolist(), "tokens": [token for token in rest if token not in stops]})
    return {"template": pieces.chat_template, "answers": answers}


def compare(asked: list[dict[str, Any]], told: dict[str, Any], tokenizer: ChatTokenizer) -> dict[str, Any]:
    """How many prompts and answers are the server's, and for each other answer the lead of our token over the next."""
    prompts = sum(one["prompt"] == other["prompt"] for one, other in zip(asked, told["answers"], strict=True))
    differ = []
    for one, other in zip(asked, told["answers"], strict=True):
        text = tokenizer.decode(other["tokens"])
        if text != one["answer"]:
            pairs = zip(tokenizer.encode(text), tokenizer.encode(one["answer"]), strict=False)
            place = next((place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), len(one["leads"]))
            lead = one["leads"][place] if place < len(one["leads"]) else None
            differ.append({"question": one["text"][-60:], "token": place, "lead_in_nats": lead})
    return {
        "same_prompts": prompts,
        "same_template": told["template"] == tokenizer.template.source,
        "same_answers": len(asked) - len(differ),
        "of": len(asked),
        "differ": differ,
    }


def smedje(server: ServerProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line, as the owner of this server."""
    env = {**os.environ, "SMEDJE_HOME": str(server.home), "SMEDJE_BASE_URL": server.url, "SMEDJE_API_KEY": KEY}
    return subprocess.run([sys.executable, "-m", "smedje.cli", *words], env=env, capture_output=True, text=True)


def planted(server: ServerProcess, folder: Path, model: str, out: Path) -> dict[str, str]:
    """What a deployment and an export of the model say after one space was added to the base model's template."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    source = folder / "chat_template.jinja"
    source.write_text((source.read_text() if source.is_file() else config["chat_template"]) + " ")
    create = smedje(server, "deployments", "create", "spoilt", "--model", model)
    export = smedje(server, "models", "export", model, str(out), "--format", "gguf")
    return {
        name: done.stderr.strip() if done.returncode and not out.exists() else "LET THROUGH"
        for name, done in (("deployment", create), ("export", export))
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, help=f"folder of an installed base model; left out: {MODEL} is pulled")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of the tuned model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"base_model": options.base.name if options.base else MODEL}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="smedje-bench-") as name:
        scratch = Path(name)
        server = ServerProcess(scratch / "home", settings={"SMEDJE_THREADS": str(os.cpu_count())})
        server.home.mkdir()
        folder = install(server.home, options.base)
        tokenizer = load_chat_tokenizer(folder)
        server.start()
        try:
            model = tune(server, folder.name, options.steps)
            asked = served(server, model, tokenizer, options.tokens)
            for kind in ("f32", "f16"):
                path = scratch / kind / "tuned.gguf"
                done = smedje(server, "models", "export", model, str(path), "--format", "gguf", "--type", kind)
                if done.returncode:
                    raise SystemExit(done.stderr)
                report[f"llama.cpp {kind}"] = compare(asked, by_llama(path, asked, options.tokens), tokenizer)
                stops = list(tokenizer.stop_ids)
                theirs = by_transformers(path, asked, options.tokens, stops)
                report[f"transformers {kind}"] = compare(asked, theirs, tokenizer)
            report["planted_template"] = planted(server, folder, model, scratch / "spoilt" / "tuned.gguf")
        finally:
            server.stop()
    report["seconds"] = round(time.monotonic() - began, 1)
    wrong = [name for name, one in report.items() if " f" in name and one["same_answers"] < one["of"]]
    wrong += [name for name, said in report["planted_template"].items() if "chat template" not in said]
    report["wrong"] = wrong
    write_report(report, options.json)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
