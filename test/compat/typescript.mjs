// Drives the Cloudflare SDK for TypeScript: reads calls from standard input, one
// JSON object a line, and answers each with a line.
//
//   {"path": ["kv", "namespaces", "values", "update"], "args": […]}
//
// calls client.kv.namespaces.values.update(…). "all": true walks the pager that is
// returned to its end. In arguments {"$buffer": base64}, {"$stream": …}, {"$response":
// …} and {"$file": …, "name"} stand for bytes; in results {"$bytes": base64,
// "headers"} does.
import Cloudflare, { toFile } from 'cloudflare';
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';

const client = new Cloudflare({
  baseURL: process.env.CLOUDFLARE_BASE_URL,
  apiToken: process.env.CLOUDFLARE_API_TOKEN,
  maxRetries: 0, // an answer that asks for a retry is a fault here
});

async function decode(value) {
  if (Array.isArray(value)) return Promise.all(value.map(decode));
  if (value === null || typeof value !== 'object') return value;
  if ('$buffer' in value) return Buffer.from(value.$buffer, 'base64');
  if ('$stream' in value) return Readable.from([Buffer.from(value.$stream, 'base64')]);
  if ('$response' in value) return new Response(Buffer.from(value.$response, 'base64'));
  if ('$file' in value) return toFile(Buffer.from(value.$file, 'base64'), value.name, { type: value.type });
  const entries = await Promise.all(Object.entries(value).map(async ([k, v]) => [k, await decode(v)]));
  return Object.fromEntries(entries);
}

async function call({ path, args = [], all }) {
  let service = client;
  for (const name of path.slice(0, -1)) service = service[name];
  const returned = service[path.at(-1)](...(await decode(args)));
  if (all) {
    const items = [];
    for await (const item of returned) items.push(item);
    return items;
  }
  const result = await returned;
  if (result instanceof Response) {
    const bytes = Buffer.from(await result.arrayBuffer());
    return { $bytes: bytes.toString('base64'), headers: Object.fromEntries(result.headers) };
  }
  return result;
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = { result: (await call(JSON.parse(line))) ?? null };
  } catch (e) {
    answer = { error: { class: e?.constructor?.name, status: e?.status ?? 0, errors: e?.errors ?? [], message: String(e?.message ?? e) } };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
