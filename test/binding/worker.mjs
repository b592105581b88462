// Every case of the KV binding, as a Worker meets it. A request runs all of them
// and answers with the list of their names, each with its error if it failed.
const cases = {};

function equal(got, want) {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  if (a !== b) throw new Error(`got ${a}, want ${b}`);
}

async function throws(work, text) {
  let message = "nothing was thrown";
  try { await work(); } catch (e) { message = e.message; }
  equal(message, text);
}

const bytes = (...list) => new Uint8Array(list);
const far = () => Math.floor(Date.now() / 1000) + 3600;

cases["get of what is not there is null"] = async ({ KV }) => {
  for (const type of ["text", "json", "arrayBuffer", "stream"]) equal(await KV.get("none", type), null);
  const r = await KV.getWithMetadata("none");
  equal([r.value, r.metadata], [null, null]);
};
cases["get as text, json, arrayBuffer, stream"] = async ({ KV }) => {
  await KV.put("types", '{"a":[1,"é"]}');
  equal(await KV.get("types"), '{"a":[1,"é"]}');
  equal(await KV.get("types", { type: "json" }), { a: [1, "é"] });
  equal((await KV.get("types", "arrayBuffer")).byteLength, 14);
  equal(await new Response(await KV.get("types", "stream")).text(), '{"a":[1,"é"]}');
};
cases["put of a string, a buffer, a view, a stream, nothing"] = async ({ KV }) => {
  const raw = bytes(0, 255, 13, 10, 128);
  const back = async () => [...new Uint8Array(await KV.get("kinds", "arrayBuffer"))];
  await KV.put("kinds", raw.buffer); equal(await back(), [...raw]);
  await KV.put("kinds", raw.subarray(1, 3)); equal(await back(), [255, 13]);
  await KV.put("kinds", new Response(raw).body); equal(await back(), [...raw]);
  const { readable, writable } = new TransformStream();
  const written = (async () => { const w = writable.getWriter(); await w.write(bytes(1)); await w.write(bytes(2, 3)); await w.close(); })();
  await KV.put("kinds", readable); await written; equal(await back(), [1, 2, 3]);
  await KV.put("kinds", ""); equal(await KV.get("kinds"), "");
};
cases["read your write, overwrite, delete"] = async ({ KV }) => {
  for (let i = 0; i < 20; i++) { await KV.put("own", `${i}`); equal(await KV.get("own"), `${i}`); }
  await KV.delete("own"); equal(await KV.get("own"), null);
  await KV.delete("own");
};
cases["metadata"] = async ({ KV }) => {
  const metadata = { a: 1, "é": ["日本", "\u0001\n\"", null], n: { f: 1.5 } };
  await KV.put("meta", "v", { metadata });
  const r = await KV.getWithMetadata("meta");
  equal([r.value, r.metadata], ["v", metadata]);
  equal((await KV.list({ prefix: "meta" })).keys, [{ name: "meta", metadata }]);
  await KV.put("meta", "v");
  equal((await KV.getWithMetadata("meta")).metadata, null);
  equal((await KV.list({ prefix: "meta" })).keys, [{ name: "meta" }]);
};
cases["expiration"] = async ({ KV }) => {
  const expiration = far();
  await KV.put("exp/a", "v", { expiration });
  await KV.put("exp/b", "v", { expirationTtl: 3600 });
  const { keys } = await KV.list({ prefix: "exp/" });
  equal(keys[0], { name: "exp/a", expiration });
  equal(Math.abs(keys[1].expiration - expiration) <= 2, true);
};
cases["awkward keys"] = async ({ KV }) => {
  const keys = ["a/b", "a b", "a+b", "a%2Fb", "a&b=c", "a?b", "a#b", "é", "日本", "😀", "../x", "./", "a//b", "\"\\", "bulk/get", "a;b", "[x]", "__proto__", "\u0001\n", "k".repeat(512), "/"];
  for (const k of keys) await KV.put(k, `=${k}`);
  for (const k of keys) equal(await KV.get(k), `=${k}`);
  const bulk = await KV.get(keys);
  for (const k of keys) equal(bulk.get(k), `=${k}`);
  for (const k of ["a+b", "é", "a&b=c", "a%2Fb", "../x"]) equal((await KV.list({ prefix: k })).keys[0].name, k);
  for (const k of keys) { await KV.delete(k); equal(await KV.get(k), null); }
};
cases["bulk get"] = async ({ KV }) => {
  await KV.put("bulk/a", '{"x":1}', { metadata: { m: [1] } });
  await KV.put("bulk/b", "2");
  const text = await KV.get(["bulk/b", "bulk/none", "bulk/a", "bulk/b"]);
  equal([...text], [["bulk/b", "2"], ["bulk/none", null], ["bulk/a", '{"x":1}']]);
  equal([...await KV.get(["bulk/a", "bulk/b"], { type: "json", cacheTtl: 90 })], [["bulk/a", { x: 1 }], ["bulk/b", 2]]);
  const meta = await KV.getWithMetadata(["bulk/a", "bulk/b", "bulk/none"], "json");
  equal(meta.get("bulk/a").value, { x: 1 });
  equal(meta.get("bulk/a").metadata, { m: [1] });
  equal(meta.get("bulk/b").metadata ?? null, null);
};
cases["bulk get: errors"] = async ({ KV }) => {
  await KV.put("bulk/text", "no json");
  await throws(() => KV.get(["bulk/text"], "json"), "KV GET_BULK failed: 400 At least one of the requested keys corresponds to a non-json value");
  await throws(() => KV.get([]), "KV GET_BULK failed: 400 You must request a minimum of 1 key");
  await throws(() => KV.get(Array.from({ length: 101 }, (_, i) => `${i}`)), "KV GET_BULK failed: 400 You can request a maximum of 100 keys");
  await throws(() => KV.get(["a"], "arrayBuffer"), 'KV GET_BULK failed: 400 "arrayBuffer" is not a valid type. Use "json" or "text"');
};
cases["list: pages, prefix, order"] = async ({ KV }) => {
  for (const k of ["c", "a", "é", "b", "B"]) await KV.put(`list/${k}`, "v");
  const seen = [];
  let cursor, pages = 0;
  for (;;) {
    const page = await KV.list({ prefix: "list/", limit: 2, cursor });
    seen.push(...page.keys.map((k) => k.name));
    pages++;
    if (page.list_complete) break;
    cursor = page.cursor;
  }
  equal([seen, pages], [["list/B", "list/a", "list/b", "list/c", "list/é"], 3]);
  equal((await KV.list({ prefix: "nothing" })).keys, []);
};
cases["list: errors"] = async ({ KV }) => {
  await throws(() => KV.list({ limit: 1001 }), "KV GET failed: 400 Invalid key_count_limit of 1001. Please specify an integer less than 1000.");
  await throws(() => KV.list({ cursor: "x" }), "KV GET failed: 400 Invalid cursor. Please use the cursor of the previous page, or none to begin anew.");
};
cases["cacheStatus"] = async ({ KV }) => {
  await KV.put("status", "v");
  equal((await KV.getWithMetadata("status", { cacheTtl: 30 })).cacheStatus, "HIT");
  equal((await KV.getWithMetadata("status never written")).cacheStatus, "MISS");
};
cases["errors of get and put"] = async ({ KV }) => {
  await throws(() => KV.get("k", { cacheTtl: 29 }), "KV GET failed: 400 Invalid cache_ttl of 29. Cache TTL must be at least 30.");
  await throws(() => KV.put("k", "v", { expirationTtl: 59 }), "KV PUT failed: 400 Invalid expiration_ttl of 59. Expiration TTL must be at least 60.");
  await throws(() => KV.put("k", "v", { expirationTtl: -1 }), "KV PUT failed: 400 Invalid expiration_ttl of -1. Please specify integer greater than 0.");
  await throws(() => KV.put("k", "v", { expirationTtl: "abc" }), "KV PUT failed: 400 Invalid expiration_ttl of 0. Please specify integer greater than 0.");
  await throws(() => KV.put("k", "v", { expiration: 1 }), "KV PUT failed: 400 Invalid expiration of 1. Please specify integer greater than the current number of seconds since the UNIX epoch.");
  await throws(() => KV.put("k", "v", { metadata: "m".repeat(1023) }), "KV PUT failed: 413 Metadata length of 1025 exceeds limit of 1024.");
};
cases["a value of 25 MiB, and one byte more"] = async ({ KV }) => {
  const most = 25 * 1024 * 1024;
  await KV.put("large", new Uint8Array(most));
  equal((await KV.get("large", "arrayBuffer")).byteLength, most);
  const text = "KV PUT failed: 413 Value length of 26214401 exceeds limit of 26214400.";
  await throws(() => KV.put("large", new Uint8Array(most + 1)), text);
  equal((await KV.get("large", "arrayBuffer")).byteLength, most);
  await KV.delete("large");
};
cases["another namespace, and one that is not ours"] = async ({ KV, OTHER, FORGED }) => {
  await KV.put("apart", "one");
  equal(await OTHER.get("apart"), null);
  await throws(() => FORGED.get("apart"), "KV GET failed: 403 Forbidden");
  await throws(() => FORGED.put("apart", "two"), "KV PUT failed: 403 Forbidden");
};
cases["many at once"] = async ({ KV }) => {
  await Promise.all(Array.from({ length: 200 }, (_, i) => KV.put(`many/${i}`, `${i}`)));
  equal(await Promise.all(Array.from({ length: 200 }, (_, i) => KV.get(`many/${i}`))), Array.from({ length: 200 }, (_, i) => `${i}`));
};

export default {
  async fetch(request, env) {
    const results = [];
    for (const [name, run] of Object.entries(cases)) {
      try { await run(env); results.push({ name, error: "" }); } catch (e) { results.push({ name, error: `${e.stack}` }); }
    }
    return Response.json(results);
  },
};
