// Calls a gateway with the official Node SDK. Prints what it got as JSON.
import { createRequire } from "node:module";
const { default: OpenAI } = createRequire(`${process.argv[3]}/`)("openai");
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "sk-x", maxRetries: 0 });
const messages = [{ role: "user", content: "Say hello." }];
const told = {};
const whole = await client.chat.completions.create({ model: "plain", messages });
told.chat = whole.choices[0].message.content;
told.usage = whole.usage.total_tokens;
told.stream = "";
for await (const chunk of await client.chat.completions.create({ model: "plain", messages, stream: true })) {
  told.stream += chunk.choices[0]?.delta?.content ?? "";
}
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const called = await client.chat.completions.create({ model: "plain", messages, tools });
told.tool = JSON.parse(called.choices[0].message.tool_calls[0].function.arguments);
told.responses = (await client.responses.create({ model: "plain", input: "Say hello." })).output_text;
const stream = client.responses.stream({ model: "plain", input: "Say hello." });
told["responses stream"] = (await stream.finalResponse()).output_text;
told.models = (await client.models.list()).data.map((model) => model.id);
try {
  await client.chat.completions.create({ model: "nope", messages });
} catch (error) {
  told.unknown = [error.constructor.name, error.status, error.code, typeof error.requestID];
}
try {
  for await (const _ of await client.chat.completions.create({ model: "broken", messages, stream: true })) {
  }
} catch (error) {
  told.broken = error instanceof OpenAI.APIError;
}
console.log(JSON.stringify(told));
