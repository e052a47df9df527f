// Embeds and lists models by OpenAI's client for JavaScript. Arguments: the URL, a key. Writes what came back as JSON.
import OpenAI from "openai";

const [url, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const model = "test-space";
const embed = (input, more = {}) => client.embeddings.create({ model, input, ...more });

async function raised(call) {
  try {
    await call();
    return "";
  } catch (error) {
    return `${error.constructor.name}: ${error.message}`;
  }
}

const packed = await embed(["so good", "it broke"]);
const numbers = await embed(["so good", "it broke"], { encoding_format: "float" });
const models = [];
for await (const each of client.models.list()) models.push(each.id);

process.stdout.write(
  JSON.stringify({
    same: packed.data[1].embedding.every((each, index) => Math.abs(each - numbers.data[1].embedding[index]) < 1e-6),
    dimensions: packed.data[1].embedding.length,
    most: (await embed(Array(2048).fill("good"))).data.length,
    models,
    retrieved: (await client.models.retrieve(model)).id,
    errors: {
      empty: await raised(() => embed("")),
      tokens: await raised(() => embed([[100, 200]])),
      model: await raised(() => client.embeddings.create({ model: "gpt", input: "good" })),
      retrieve: await raised(() => client.models.retrieve("gpt")),
    },
  }),
);
