"""Calls a gateway with LangChain's ChatOpenAI. Prints what it got as JSON."""

import json
import sys

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model="plain", base_url=f"{sys.argv[1]}/v1", api_key="sk-x", max_retries=0, stream_usage=True
)
chunks = list(model.stream("Say hello."))
tool = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
through_responses = ChatOpenAI(
    model="plain", base_url=f"{sys.argv[1]}/v1", api_key="sk-x", max_retries=0, use_responses_api=True
)
print(
    json.dumps(
        {
            "chat": model.invoke("Say hello.").content,
            "stream": "".join(chunk.content for chunk in chunks),
            "usage": next(chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata),
            "tool": model.bind_tools([tool]).invoke("x").tool_calls[0]["args"],
            "responses": through_responses.invoke("Say hello.").text,
        }
    )
)
