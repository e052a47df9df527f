// Calls through the types that openapi-typescript wrote; a member that is missing or too many doesn't compile.
import createClient from "openapi-fetch";

import type { components, operations, paths } from "./schema.js";

declare const process: { argv: string[] };
const [url, key] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

function present<T>(name: string, value: T | undefined, error: unknown): T {
  if (value === undefined) throw new Error(`${name}: ${JSON.stringify(error)}`);
  return value;
}

// Members with defaults may be left out, and answers have the members that are always there.
const one = await client.POST("/v1/predict", { body: { text: "a great phone" } });
const prediction = present("predict", one.data, one.error);
const sentiment: "negative" | "neutral" | "positive" = prediction.sentiment;
const cut: true | undefined = prediction.truncated;

const many = await client.POST("/v1/predict/batch", { body: { texts: ["good", "bad"], version: 1 } });
const page = await client.GET("/v1/predictions", { params: { query: { since: "24h", limit: 2 } } });
const found = await client.POST("/v1/similar", {
  body: { text: "phone", k: 5, filters: { sentiment, since: "yesterday" }, counts: true },
});
const same = await client.POST("/v1/duplicates", { body: { prediction_id: prediction.id } });
const judged = await client.POST("/v1/feedback", {
  params: { header: { "Idempotency-Key": "once" } },
  body: { prediction_id: prediction.id, is_correct: true },
});
const model = await client.GET("/v1/models/{name}", { params: { path: { name: "sentiment" } } });
const state: components["schemas"]["VersionState"] | undefined = model.data?.versions[0]?.state;
const inferred = await client.POST("/v2/models/{name}/infer", {
  params: { path: { name: "sentiment" } },
  body: { inputs: [{ name: "text", shape: [1], datatype: "BYTES", data: ["good"] }] },
});
const wrong = await client.POST("/v1/predict", { body: { text: " " } });
const problem: components["schemas"]["ProblemDetails"] = present("problem", wrong.error, wrong.data);

// @ts-expect-error: a text is needed
const incomplete: operations["predict"]["requestBody"]["content"]["application/json"] = {};
void [cut, incomplete];

console.log(
  JSON.stringify({
    sentiment,
    batch: present("batch", many.data, many.error).predictions.length,
    page: present("page", page.data, page.error).items.length,
    found: present("similar", found.data, found.error).results.length,
    same: present("duplicates", same.data, same.error).exact,
    judged: present("feedback", judged.data, judged.error).is_correct,
    state: present("model", state, model.error),
    outputs: present("infer", inferred.data, inferred.error).outputs.map((output) => output.name),
    problem: problem.detail,
  }),
);
