// A Worker in the service worker syntax, whose bindings are globals.
addEventListener("fetch", (event) => event.respondWith(handle()));

async function handle() {
  const raw = new Uint8Array([0, 255, 1]);
  await KV.put("sw/k", raw, { metadata: { a: 1 }, expirationTtl: 3600 });
  const { value, metadata } = await KV.getWithMetadata("sw/k", "arrayBuffer");
  const { keys } = await KV.list({ prefix: "sw/" });
  await KV.put("sw/text", "v");
  const bulk = await KV.get(["sw/text", "sw/none"]);
  await KV.delete("sw/k");
  const got = JSON.stringify([[...new Uint8Array(value)], metadata, keys.map((k) => k.name), [...bulk], await KV.get("sw/k")]);
  const want = '[[0,255,1],{"a":1},["sw/k"],[["sw/text","v"],["sw/none",null]],null]';
  return new Response(got === want ? "ok" : got);
}
