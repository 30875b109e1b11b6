// The unmodified openai package for Node against smedje: plain, streamed, JSON of a schema, a tool, an error.
// npm install && OPENAI_BASE_URL=http://127.0.0.1:8321/v1 OPENAI_API_KEY=$(cat owner_key) node chat.mjs
import OpenAI from "openai";

const client = new OpenAI();
const model = process.env.MODEL ?? "smollm2-135m-instruct";
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const city = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", parameters: city } }];
const short = { model, messages, temperature: 0, max_tokens: 12 };

const plain = await client.chat.completions.create(short);

let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...short, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}

const json = await client.chat.completions.create({
  model,
  messages,
  temperature: 0,
  max_tokens: 60,
  response_format: { type: "json_schema", json_schema: { name: "place", schema: city, strict: true } },
});

const called = await client.chat.completions.create({
  model,
  messages,
  temperature: 0,
  max_tokens: 60,
  tools,
  tool_choice: { type: "function", function: { name: "get_weather" } },
});
const call = called.choices[0].message.tool_calls[0];
const reply = await client.chat.completions.create({
  model,
  messages: [
    ...messages,
    called.choices[0].message,
    { role: "tool", tool_call_id: call.id, content: "rain, 21 degrees" },
  ],
  tools,
  tool_choice: "none",
  temperature: 0,
  max_tokens: 30,
});

let error = null;
try {
  await client.chat.completions.create({ ...short, model: "nobody" });
} catch (problem) {
  error = { status: problem.status, code: problem.code };
}

console.log(
  JSON.stringify({
    plain: plain.choices[0].message.content,
    streamed,
    parsed: JSON.parse(json.choices[0].message.content),
    call: {
      name: call.function.name,
      arguments: JSON.parse(call.function.arguments),
      finish_reason: called.choices[0].finish_reason,
    },
    reply: reply.choices[0].message.content,
    error,
  }),
);
