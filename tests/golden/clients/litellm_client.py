"""Calls a gateway with litellm, over chat completions and over Anthropic's Messages. Prints what it got as JSON."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks GitHub for prices on import
import litellm

BASE = sys.argv[1]
ASK = [{"role": "user", "content": "Say hello."}]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
]


def ask(model: str, base: str, **fields: object) -> object:
    return litellm.completion(
        model=model, api_base=base, api_key="sk-x", messages=ASK, num_retries=0, max_tokens=9, **fields
    )


told = {}
for name, model, base in (
    ("chat", "openai/plain", f"{BASE}/v1"),
    ("messages", "anthropic/plain", f"{BASE}/v1/messages"),
):
    told[name] = ask(model, base).choices[0].message.content
    told[f"{name} stream"] = "".join(c.choices[0].delta.content or "" for c in ask(model, base, stream=True))
    called = ask(model, base, tools=TOOLS).choices[0].message.tool_calls[0].function
    told[f"{name} tool"] = [called.name, json.loads(called.arguments)]
    told[f"{name} usage"] = ask(model, base).usage.total_tokens
try:
    ask("openai/nope", f"{BASE}/v1")
except litellm.NotFoundError:
    told["unknown"] = "NotFoundError"
print(json.dumps(told))
