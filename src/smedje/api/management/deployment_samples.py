"""How to ask a deployment from four languages, as code that runs as it stands once the key is in the environment."""

import json

PYTHON = """\
# pip install openai
import os
from openai import OpenAI

client = OpenAI(base_url={base}, api_key=os.environ["SMEDJE_KEY"])
answer = client.chat.completions.create(model={name}, messages=[{{"role": "user", "content": "Hello"}}])
print(answer.choices[0].message.content)
"""

JAVASCRIPT = """\
// npm install openai
import OpenAI from "openai";

const client = new OpenAI({{ baseURL: {base}, apiKey: process.env.SMEDJE_KEY }});
const answer = await client.chat.completions.create({{
  model: {name},
  messages: [{{ role: "user", content: "Hello" }}],
}});
console.log(answer.choices[0].message.content);
"""

CSHARP = """\
// dotnet add package OpenAI
using System.ClientModel;
using OpenAI;
using OpenAI.Chat;

var key = new ApiKeyCredential(Environment.GetEnvironmentVariable("SMEDJE_KEY")!);
var options = new OpenAIClientOptions {{ Endpoint = new Uri({base}) }};
ChatCompletion answer = new ChatClient({name}, key, options).CompleteChat("Hello");
Console.WriteLine(answer.Content[0].Text);
"""

CURL = """\
curl {url} \\
  -H "Authorization: Bearer $SMEDJE_KEY" -H "Content-Type: application/json" \\
  -d '{body}'
"""


def samples(name: str, base_url: str) -> dict[str, str]:
    """Language -> a whole program that asks the deployment. base_url: where clients reach the API, ending in /v1."""
    # JSON's quoting of these strings is also that of the three languages.
    words = {"base": json.dumps(base_url), "name": json.dumps(name)}
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}]})
    return {
        "python": PYTHON.format(**words),
        "javascript": JAVASCRIPT.format(**words),
        "csharp": CSHARP.format(**words),
        "curl": CURL.format(url=json.dumps(f"{base_url}/chat/completions"), body=body),
    }
