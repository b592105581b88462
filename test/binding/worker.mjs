// Every case of the KV binding, as a Worker meets it. A request for / answers with
// the names of the cases, one for /?case=NAME runs one. KV is a namespace like any
// other; FAR is the same without what is near, as if written elsewhere; OTHER is
// another one, PAGES has one key more than a page, FORGED does not know its token,
// SPENT may do 1,000 operations, and CUT drops the connections of keys that say so.
const cases = {};
const local = new Set(); // cases that the runtime answers without asking for anything

function equal(got, want) {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  if (a !== b) throw new Error(`got ${a?.slice(0, 400)}, want ${b?.slice(0, 400)}`);
}

async function throws(work, text) {
  let message = "nothing was thrown";
  try { await work(); } catch (e) { message = e.message; }
  equal(message, text);
}

const bytes = (...list) => new Uint8Array(list);
const seconds = () => Math.floor(Date.now() / 1000);
const names = (page) => page.keys.map((k) => k.name);
const range = (n, f) => Array.from({ length: n }, (_, i) => f(i));
const raw = bytes(0, 255, 13, 10, 128, 0);

async function bytesOf(KV, key) {
  const value = await KV.get(key, "arrayBuffer");
  return value && [...new Uint8Array(value)];
}

// unknown is a stream whose length is not known before its end.
function unknown(...parts) {
  return new ReadableStream({
    pull(controller) {
      if (parts.length === 0) controller.close();
      else controller.enqueue(parts.shift());
    },
  });
}

// --- get

for (const type of ["text", "json", "arrayBuffer", "stream"]) {
  cases[`get: what is not there, as ${type}`] = async ({ KV }) => {
    equal(await KV.get("none", type), null);
    equal(await KV.get("none", { type }), null);
    const r = await KV.getWithMetadata("none", type);
    equal([r.value, r.metadata], [null, null]);
  };
}
cases["get: text"] = async ({ KV }) => {
  await KV.put("get", '{"a":[1,"é😀"]}');
  for (const type of [undefined, "text", {}, { type: "text" }]) equal(await KV.get("get", type), '{"a":[1,"é😀"]}');
};
cases["get: json"] = async ({ KV }) => {
  await KV.put("get", '{"a":[1,"é😀"]}');
  equal(await KV.get("get", "json"), { a: [1, "é😀"] });
  equal(await KV.get("get", { type: "json", cacheTtl: 3600 }), { a: [1, "é😀"] });
};
cases["get: arrayBuffer"] = async ({ KV }) => {
  await KV.put("get", raw);
  const value = await KV.get("get", "arrayBuffer");
  equal([value instanceof ArrayBuffer, [...new Uint8Array(value)]], [true, [...raw]]);
};
cases["get: stream"] = async ({ KV }) => {
  await KV.put("get", raw);
  const value = await KV.get("get", { type: "stream" });
  equal([value instanceof ReadableStream, [...new Uint8Array(await new Response(value).arrayBuffer())]], [true, [...raw]]);
};
cases["get: a stream that is not read, and one that is cancelled"] = async ({ KV }) => {
  await KV.put("get", new Uint8Array(200_000));
  await KV.get("get", "stream");
  await (await KV.get("get", "stream")).cancel();
  equal((await KV.get("get", "arrayBuffer")).byteLength, 200_000);
};
cases["get: text that is not UTF-8"] = async ({ KV }) => {
  await KV.put("get", bytes(97, 255, 98));
  equal(await KV.get("get"), "a\ufffdb");
};
cases["get: json that is none"] = async ({ KV }) => {
  await KV.put("get", "no json");
  let thrown;
  try { await KV.get("get", "json"); } catch (e) { thrown = e; }
  equal([thrown?.name, thrown?.message], ["SyntaxError", `Unexpected token 'o', "no json" is not valid JSON`]);
};
cases["get: an unknown type"] = async ({ KV }) => {
  await KV.put("get", "v");
  await throws(() => KV.get("get", "blob"), 'Unknown response type. Possible types are "text", "arrayBuffer", "json", and "stream".');
};
cases["get: cacheTtl, the least"] = async ({ KV, LIMITS }) => {
  await KV.put("get", "v");
  equal(await KV.get("get", { cacheTtl: LIMITS.cacheTtl }), "v");
  equal((await KV.getWithMetadata("get", { cacheTtl: LIMITS.cacheTtl })).value, "v");
};
cases["get: cacheTtl, the greatest"] = async ({ KV }) => {
  await KV.put("get", "v");
  equal(await KV.get("get", { cacheTtl: 2147483647 }), "v");
};
cases["get: cacheTtl, one below the least"] = async ({ KV, LIMITS }) => {
  const less = LIMITS.cacheTtl - 1;
  await throws(() => KV.get("get", { cacheTtl: less }), `KV GET failed: 400 Invalid cache_ttl of ${less}. Cache TTL must be at least ${LIMITS.cacheTtl}.`);
  await throws(() => KV.getWithMetadata("get", { cacheTtl: less }), `KV GET failed: 400 Invalid cache_ttl of ${less}. Cache TTL must be at least ${LIMITS.cacheTtl}.`);
};
cases["get: cacheTtl, below zero"] = async ({ KV, LIMITS }) => {
  await throws(() => KV.get("get", { cacheTtl: -1 }), `KV GET failed: 400 Invalid cache_ttl of -1. Cache TTL must be at least ${LIMITS.cacheTtl}.`);
};
for (const type of ["text", "json", "arrayBuffer", "stream"]) {
  cases[`getWithMetadata: ${type}`] = async ({ KV }) => {
    await KV.put("getm", "[1]", { metadata: { a: 1 } });
    const r = await KV.getWithMetadata("getm", type);
    const value = type === "json" ? JSON.stringify(r.value) : await new Response(r.value).text();
    equal([value, r.metadata], ["[1]", { a: 1 }]);
  };
}

// --- put: the kinds of value

const kinds = {
  "a string": ["é😀\0", [...new TextEncoder().encode("é😀\0")]],
  "an empty string": ["", []],
  "an ArrayBuffer": [raw.buffer, [...raw]],
  "an empty ArrayBuffer": [new ArrayBuffer(0), []],
  "a view of a part": [raw.subarray(1, 3), [255, 13]],
  "a DataView": [new DataView(raw.buffer, 1, 2), [255, 13]],
  "a Uint16Array": [new Uint16Array([258]), [2, 1]],
  "a body of known length": [() => new Response(raw).body, [...raw]],
  "a stream of unknown length": [() => unknown(bytes(1), bytes(2, 3), bytes(4)), [1, 2, 3, 4]],
  "an empty stream": [() => unknown(), []],
};
for (const [kind, [value, want]] of Object.entries(kinds)) {
  cases[`put: ${kind}`] = async ({ KV }) => {
    await KV.put("put", typeof value === "function" ? value() : value);
    equal(await bytesOf(KV, "put"), want);
  };
}
cases["put: a stream that is written meanwhile"] = async ({ KV }) => {
  const { readable, writable } = new TransformStream();
  const put = KV.put("put", readable);
  const writer = writable.getWriter();
  for (const part of [bytes(1), bytes(2, 3)]) await writer.write(part);
  await writer.close();
  await put;
  equal(await bytesOf(KV, "put"), [1, 2, 3]);
};
cases["put: a stream of fixed length"] = async ({ KV }) => {
  const { readable, writable } = new FixedLengthStream(3);
  const put = KV.put("put", readable);
  const writer = writable.getWriter();
  await writer.write(bytes(7, 8, 9));
  await writer.close();
  await put;
  equal(await bytesOf(KV, "put"), [7, 8, 9]);
};
cases["put: a stream from one key to another"] = async ({ KV }) => {
  await KV.put("put/from", new Uint8Array(100_000).fill(5));
  await KV.put("put/to", await KV.get("put/from", "stream"));
  const value = new Uint8Array(await KV.get("put/to", "arrayBuffer"));
  equal([value.length, value.every((b) => b === 5)], [100_000, true]);
};
cases["put: what becomes text"] = async ({ KV }) => {
  for (const [value, text] of [[null, "null"], [undefined, "undefined"], [5, "5"], [true, "true"]]) {
    await KV.put("put", value);
    equal(await KV.get("put"), text);
  }
};
local.add("put: what is no value");
cases["put: what is no value"] = async ({ KV }) => {
  const text = "KV put() accepts only strings, ArrayBuffers, ArrayBufferViews, and ReadableStreams as values.";
  for (const value of [{}, [1], new Date(0), () => "v"]) await throws(() => KV.put("put", value), text);
};
cases["put: the greatest value, as a buffer"] = async ({ KV, LIMITS }) => {
  await KV.put("large", new Uint8Array(LIMITS.value));
  equal((await KV.get("large", "arrayBuffer")).byteLength, LIMITS.value);
};
cases["put: the greatest value, as a stream of unknown length"] = async ({ KV, LIMITS }) => {
  await KV.put("large", unknown(new Uint8Array(LIMITS.value - 1), bytes(1)));
  equal((await KV.get("large", "arrayBuffer")).byteLength, LIMITS.value);
};
cases["put: one byte more, as a buffer"] = async ({ KV, LIMITS }) => {
  await KV.put("large", "before");
  await throws(() => KV.put("large", new Uint8Array(LIMITS.value + 1)), `KV PUT failed: 413 Value length of ${LIMITS.value + 1} exceeds limit of ${LIMITS.value}.`);
  equal(await KV.get("large"), "before");
};
cases["put: one byte more, as a string"] = async ({ KV, LIMITS }) => {
  await KV.put("large", "before");
  await throws(() => KV.put("large", "x".repeat(LIMITS.value + 1)), `KV PUT failed: 413 Value length of ${LIMITS.value + 1} exceeds limit of ${LIMITS.value}.`);
  equal(await KV.get("large"), "before");
};
cases["put: one byte more, as a stream of unknown length"] = async ({ KV, LIMITS }) => {
  await KV.put("large", "before");
  await throws(() => KV.put("large", unknown(new Uint8Array(LIMITS.value), bytes(1))), `KV PUT failed: 413 Value length of ${LIMITS.value + 1} exceeds limit of ${LIMITS.value}.`);
  equal(await KV.get("large"), "before");
};
cases["put: a stream that fails"] = async ({ KV }) => {
  // The runtime ends such a body as if it were whole, so that what came of it will
  // have been written, after the Worker was told of the failure.
  const failing = new ReadableStream({ pull(controller) { controller.error(new Error("torn")); } });
  await throws(() => KV.put("put/torn", failing), "torn");
  await KV.put("put", "after");
  equal(await KV.get("put"), "after");
};
cases["put: a stream of fixed length that fails leaves what was"] = async ({ KV }) => {
  await KV.put("put", "before");
  const { readable, writable } = new FixedLengthStream(10);
  const put = KV.put("put", readable);
  const writer = writable.getWriter();
  await writer.write(bytes(1));
  const aborted = writer.abort(new Error("torn"));
  await throws(() => put, "torn");
  await aborted;
  equal(await KV.get("put"), "before");
};

// --- put: metadata

for (const [kind, metadata] of Object.entries({
  "an object": { a: 1, n: { f: 1.5, z: null }, l: [true, "x"] },
  "text of every kind": { "é": "日本😀", c: "\u0001\n\r\t\"\\\u007f\u2028" },
  "a string": "s", "a number": 0, "false": false, "a list": [],
})) {
  cases[`metadata: ${kind}`] = async ({ KV }) => {
    await KV.put("meta", "v", { metadata });
    const r = await KV.getWithMetadata("meta");
    equal([r.value, r.metadata], ["v", metadata]);
    equal((await KV.list({ prefix: "meta" })).keys, [{ name: "meta", metadata }]);
    equal((await KV.getWithMetadata(["meta"])).get("meta"), { value: "v", metadata });
  };
}
cases["metadata: null, and none, clear it"] = async ({ KV }) => {
  for (const options of [{ metadata: null }, {}, undefined]) {
    await KV.put("meta", "v", { metadata: { a: 1 } });
    await KV.put("meta", "v", options);
    equal((await KV.getWithMetadata("meta")).metadata, null);
    equal((await KV.list({ prefix: "meta" })).keys, [{ name: "meta" }]);
  }
};
cases["metadata: the greatest"] = async ({ KV, LIMITS }) => {
  const metadata = "m".repeat(LIMITS.metadata - 2);
  await KV.put("meta", "v", { metadata });
  equal((await KV.getWithMetadata("meta")).metadata, metadata);
};
cases["metadata: one byte more"] = async ({ KV, LIMITS }) => {
  await throws(() => KV.put("meta", "v", { metadata: "m".repeat(LIMITS.metadata - 1) }), `KV PUT failed: 413 Metadata length of ${LIMITS.metadata + 1} exceeds limit of ${LIMITS.metadata}.`);
};
cases["metadata: one byte more, in two-byte letters"] = async ({ KV, LIMITS }) => {
  const text = "é".repeat((LIMITS.metadata - 2) / 2);
  await KV.put("meta", "v", { metadata: text });
  await throws(() => KV.put("meta", "v", { metadata: text + "x" }), `KV PUT failed: 413 Metadata length of ${LIMITS.metadata + 1} exceeds limit of ${LIMITS.metadata}.`);
};
cases["metadata: far more"] = async ({ KV, LIMITS }) => {
  await throws(() => KV.put("meta", "v", { metadata: "m".repeat(100_000) }), `KV PUT failed: 413 Metadata length of 100002 exceeds limit of ${LIMITS.metadata}.`);
};

// --- put: expiration

cases["expiration: a moment, and from now"] = async ({ KV }) => {
  const expiration = seconds() + 3600;
  await KV.put("exp/a", "v", { expiration });
  await KV.put("exp/b", "v", { expirationTtl: 3600 });
  const { keys } = await KV.list({ prefix: "exp/" });
  equal(keys[0], { name: "exp/a", expiration });
  equal(Math.abs(keys[1].expiration - expiration) <= 5, true);
  equal(await KV.get("exp/a"), "v");
};
cases["expiration: from now wins over a moment"] = async ({ KV }) => {
  await KV.put("exp/w", "v", { expiration: seconds() + 100_000, expirationTtl: 3600 });
  const [{ expiration }] = (await KV.list({ prefix: "exp/w" })).keys;
  equal(Math.abs(expiration - seconds() - 3600) <= 5, true);
};
cases["expiration: a write without one makes the key last"] = async ({ KV }) => {
  await KV.put("exp/l", "v", { expirationTtl: 3600 });
  await KV.put("exp/l", "v");
  equal((await KV.list({ prefix: "exp/l" })).keys, [{ name: "exp/l" }]);
};
cases["expiration: from now, the least"] = async ({ KV, LIMITS }) => {
  await KV.put("exp/m", "v", { expirationTtl: LIMITS.ttl });
  equal(await KV.get("exp/m"), "v");
};
cases["expiration: from now, one below the least"] = async ({ KV, LIMITS }) => {
  await throws(() => KV.put("k", "v", { expirationTtl: LIMITS.ttl - 1 }), `KV PUT failed: 400 Invalid expiration_ttl of ${LIMITS.ttl - 1}. Expiration TTL must be at least ${LIMITS.ttl}.`);
};
for (const [given, sent] of [[0, "0"], [-1, "-1"], ["abc", "0"], [NaN, "0"], [0.5, "0"]]) {
  cases[`expiration: from now, ${given}`] = async ({ KV }) => {
    await throws(() => KV.put("k", "v", { expirationTtl: given }), `KV PUT failed: 400 Invalid expiration_ttl of ${sent}. Please specify integer greater than 0.`);
  };
}
cases["expiration: a moment that is just far enough"] = async ({ KV, LIMITS }) => {
  await KV.put("exp/n", "v", { expiration: seconds() + LIMITS.ttl + 2 });
  equal(await KV.get("exp/n"), "v");
};
cases["expiration: a moment too near"] = async ({ KV, LIMITS }) => {
  const near = seconds() + LIMITS.ttl - 1;
  await throws(() => KV.put("k", "v", { expiration: near }), `KV PUT failed: 400 Invalid expiration of ${near}. Expiration times must be at least ${LIMITS.ttl} seconds in the future.`);
};
for (const given of [1, 0, -1]) {
  cases[`expiration: a moment that is past, ${given}`] = async ({ KV }) => {
    await throws(() => KV.put("k", "v", { expiration: given }), `KV PUT failed: 400 Invalid expiration of ${given}. Please specify integer greater than the current number of seconds since the UNIX epoch.`);
  };
}
cases["expiration: what has expired is not seen"] = async ({ KV, LIMITS }) => {
  if (LIMITS.ttl > 5) return "skipped: it would take a minute";
  const begin = Date.now();
  await KV.put("exp/gone", "v", { expirationTtl: LIMITS.ttl });
  const written = Date.now();
  for (;;) {
    const asked = Date.now();
    if ((await KV.get("exp/gone")) === null) break;
    if (asked - written > (LIMITS.ttl + 1) * 1000) throw new Error("it is still there");
    await new Promise((done) => setTimeout(done, 50));
  }
  if (Date.now() - begin < (LIMITS.ttl - 1) * 1000) throw new Error("it went too early");
  equal((await KV.get(["exp/gone"])).get("exp/gone"), null);
  equal((await KV.list({ prefix: "exp/gone" })).keys, []);
};

// --- keys

for (const key of ["a/b", "a b", " ", "a+b", "a%2Fb", "a%b", "%", "a&b=c", "a?b", "a#b", "é", "e\u0301", "日本", "😀", "../x", "./", "/", "//", "a//b", "a\\b", "\"", "a;b,c", "[x]",
  "bulk/get", "bulk", "values/x", "...", "http://x/y?z#w", "__proto__", "constructor", "toString", "null", "undefined", "0", "\u0001\n\r\t", "\u007f", "\0", "\ufeff", "\uffff", "true"]) {
  cases[`key: ${JSON.stringify(key)}`] = async ({ KV }) => {
    await KV.put(key, `=${key}`, { metadata: { key } });
    equal(await KV.get(key), `=${key}`);
    const bulk = await KV.get([key]);
    if (key !== "0") { // the runtime loses names that are indices of an array
      equal([bulk.size, bulk.get(key)], [1, `=${key}`]);
      equal((await KV.getWithMetadata([key])).get(key), { value: `=${key}`, metadata: { key } });
    }
    const listed = (await KV.list({ prefix: key })).keys.filter((k) => k.name === key);
    equal(listed, [{ name: key, metadata: { key } }]);
    await KV.delete(key);
    equal([await KV.get(key), (await KV.get([key])).get(key) ?? null], [null, null]);
  };
}
cases["key: as many bytes as may be"] = async ({ KV }) => {
  for (const key of ["k".repeat(512), "é".repeat(256)]) {
    await KV.put(key, "v");
    equal([await KV.get(key), (await KV.get([key])).get(key), names(await KV.list({ prefix: key }))], ["v", "v", [key]]);
    await KV.delete(key);
    equal(await KV.get(key), null);
  }
};
local.add("key: one byte more");
cases["key: one byte more"] = async ({ KV }) => {
  for (const key of ["k".repeat(513), "é".repeat(256) + "x"]) {
    const text = "failed: 414 UTF-8 encoded length of 513 exceeds key length limit of 512.";
    await throws(() => KV.get(key), `KV GET ${text}`);
    await throws(() => KV.getWithMetadata(key), `KV GET ${text}`);
    await throws(() => KV.put(key, "v"), `KV PUT ${text}`);
    await throws(() => KV.delete(key), `KV DELETE ${text}`);
  }
};
cases["key: one byte more, in a bulk get and as a prefix"] = async ({ KV }) => {
  const key = "k".repeat(513);
  await throws(() => KV.get(["a", key]), "KV GET_BULK failed: 414 UTF-8 encoded length of 513 exceeds key length limit of 512.");
  await throws(() => KV.list({ prefix: key }), "KV GET failed: 414 UTF-8 encoded length of 513 exceeds key length limit of 512.");
};
local.add("key: empty, . and ..");
cases["key: empty, . and .."] = async ({ KV }) => {
  for (const [key, text] of [["", "Key name cannot be empty."], [".", '"." is not allowed as a key name.'], ["..", '".." is not allowed as a key name.']]) {
    await throws(() => KV.get(key), text);
    await throws(() => KV.getWithMetadata(key), text);
    await throws(() => KV.put(key, "v"), text);
    await throws(() => KV.delete(key), text);
  }
};
cases["key: empty, . and .. in a bulk get"] = async ({ KV }) => {
  await throws(() => KV.get(["a", ""]), "KV GET_BULK failed: 400 Key names must not be empty");
  await throws(() => KV.get(["."]), 'KV GET_BULK failed: 400 Illegal key name ".". Please use a different name.');
  await throws(() => KV.get([".."]), 'KV GET_BULK failed: 400 Illegal key name "..". Please use a different name.');
};

// --- delete

cases["delete: what is there"] = async ({ KV }) => {
  await KV.put("del", "v", { metadata: 1 });
  equal(await KV.delete("del"), undefined);
  const r = await KV.getWithMetadata("del");
  equal([r.value, r.metadata, (await KV.list({ prefix: "del" })).keys, (await KV.get(["del"])).get("del")], [null, null, [], null]);
};
cases["delete: what is not there"] = async ({ KV }) => {
  await KV.delete("del/never");
  await KV.delete("del/never");
};
cases["delete: and write again"] = async ({ KV }) => {
  await KV.put("del", "1", { metadata: 1, expirationTtl: 3600 });
  await KV.delete("del");
  await KV.put("del", "2");
  equal([await KV.get("del"), (await KV.list({ prefix: "del" })).keys], ["2", [{ name: "del" }]]);
};

// --- bulk get

cases["bulk: values in the order of the keys, each once"] = async ({ KV }) => {
  await KV.put("bulk/a", '{"x":1}', { metadata: { m: [1] } });
  await KV.put("bulk/b", "2");
  const map = await KV.get(["bulk/b", "bulk/none", "bulk/a", "bulk/b"]);
  equal([map instanceof Map, [...map]], [true, [["bulk/b", "2"], ["bulk/none", null], ["bulk/a", '{"x":1}']]]);
};
cases["bulk: as text, as json"] = async ({ KV }) => {
  await KV.put("bulk/j", '{"x":[null,"é"]}');
  for (const type of ["text", { type: "text" }]) equal([...await KV.get(["bulk/j"], type)], [["bulk/j", '{"x":[null,"é"]}']]);
  for (const type of ["json", { type: "json" }]) equal([...await KV.get(["bulk/j"], type)], [["bulk/j", { x: [null, "é"] }]]);
};
cases["bulk: an empty value"] = async ({ KV }) => {
  await KV.put("bulk/e", "");
  equal([...await KV.get(["bulk/e"])], [["bulk/e", ""]]);
};
cases["bulk: with metadata"] = async ({ KV }) => {
  await KV.put("bulk/m", "[1]", { metadata: { m: "é" } });
  await KV.put("bulk/n", "[2]");
  const text = await KV.getWithMetadata(["bulk/m", "bulk/n", "bulk/none"]);
  equal([...text], [["bulk/m", { value: "[1]", metadata: { m: "é" } }], ["bulk/n", { value: "[2]", metadata: null }], ["bulk/none", null]]);
  equal((await KV.getWithMetadata(["bulk/m"], "json")).get("bulk/m"), { value: [1], metadata: { m: "é" } });
};
cases["bulk: a value that is no JSON"] = async ({ KV }) => {
  await KV.put("bulk/a", "1");
  await KV.put("bulk/text", "no json");
  await throws(() => KV.get(["bulk/a", "bulk/text"], "json"), "KV GET_BULK failed: 400 At least one of the requested keys corresponds to a non-json value");
};
cases["bulk: a value that is no text"] = async ({ KV }) => {
  await KV.put("bulk/bytes", raw);
  await throws(() => KV.get(["bulk/bytes"]), "KV GET_BULK failed: 400 At least one of the requested keys corresponds to a non-text value");
};
for (const type of ["arrayBuffer", "stream", "blob"]) {
  cases[`bulk: as ${type}`] = async ({ KV }) => {
    await throws(() => KV.get(["a"], type), `KV GET_BULK failed: 400 "${type}" is not a valid type. Use "json" or "text"`);
  };
}
cases["bulk: as many keys as may be"] = async ({ KV, LIMITS }) => {
  const keys = range(LIMITS.bulk, (i) => `bulk/most/${i}`);
  await KV.put(keys[1], "v");
  const map = await KV.get(keys);
  equal([map.size, map.get(keys[0]), map.get(keys[1]), [...map.keys()].join()], [LIMITS.bulk, null, "v", keys.join()]);
};
cases["bulk: one key more"] = async ({ KV, LIMITS }) => {
  await throws(() => KV.get(range(LIMITS.bulk + 1, (i) => `${i}`)), `KV GET_BULK failed: 400 You can request a maximum of ${LIMITS.bulk} keys`);
};
cases["bulk: no key"] = async ({ KV }) => {
  await throws(() => KV.get([]), "KV GET_BULK failed: 400 You must request a minimum of 1 key");
};
cases["bulk: cacheTtl, the least, and one below"] = async ({ KV, LIMITS }) => {
  await KV.put("bulk/c", "v");
  equal([...await KV.get(["bulk/c"], { cacheTtl: LIMITS.cacheTtl })], [["bulk/c", "v"]]);
  await throws(() => KV.get(["bulk/c"], { cacheTtl: LIMITS.cacheTtl - 1 }), `KV GET_BULK failed: 400 Invalid cache_ttl of ${LIMITS.cacheTtl - 1}. Cache TTL must be at least ${LIMITS.cacheTtl}.`);
};
cases["bulk: as many bytes as may be, and one more"] = async ({ KV, LIMITS }) => {
  const half = LIMITS.bulkBytes / 2;
  for (const key of ["bulk/l1", "bulk/l2"]) await KV.put(key, "x".repeat(half));
  const map = await KV.get(["bulk/l1", "bulk/l2"]);
  equal([map.get("bulk/l1").length, map.get("bulk/l2").length], [half, half]);
  await KV.put("bulk/l3", "x");
  await throws(() => KV.get(["bulk/l1", "bulk/l2", "bulk/l3"]), `KV GET_BULK failed: 413 Total size of request exceeds the limit of ${Math.floor(LIMITS.bulkBytes / 1048576)}MB`);
  for (const key of ["bulk/l1", "bulk/l2", "bulk/l3"]) await KV.delete(key);
};
cases["bulk: names that objects have"] = async ({ KV }) => {
  const keys = ["__proto__", "constructor", "toString", "hasOwnProperty", "valueOf"];
  equal([...await KV.get(keys)], keys.map((k) => [k, null]));
  for (const key of keys) await KV.put(key, `"${key}"`);
  equal([...await KV.get(keys, "json")], keys.map((k) => [k, k]));
  for (const key of keys) await KV.delete(key);
};

// --- list

cases["list: nothing"] = async ({ KV }) => {
  const page = await KV.list({ prefix: "list/nothing" });
  equal([page.keys, page.list_complete, page.cursor], [[], true, undefined]);
};
cases["list: in the order of the bytes, page by page"] = async ({ KV }) => {
  for (const k of ["c", "a", "é", "😀", "b", "B", "\uffff"]) await KV.put(`list/${k}`, "v");
  const seen = [];
  let cursor, pages = 0;
  for (;;) {
    const page = await KV.list({ prefix: "list/", limit: 2, cursor });
    seen.push(...names(page));
    if (++pages > 10 || page.list_complete) { equal(page.cursor, undefined); break; }
    cursor = page.cursor;
  }
  equal([seen, pages], [["list/B", "list/a", "list/b", "list/c", "list/é", "list/\uffff", "list/😀"], 4]);
};
cases["list: null and undefined options"] = async ({ OTHER }) => {
  await OTHER.put("only", "v");
  for (const options of [undefined, null, {}, { prefix: null, cursor: null, limit: null }, { prefix: undefined }, { prefix: "" }]) equal(names(await OTHER.list(options)), ["only"]);
  await OTHER.delete("only");
};
cases["list: as many as may be, by itself"] = async ({ PAGES, LIMITS }) => {
  const page = await PAGES.list();
  equal([page.keys.length, page.list_complete], [LIMITS.list, false]);
  const rest = await PAGES.list({ cursor: page.cursor });
  equal([names(rest), rest.list_complete], [["b"], true]);
};
cases["list: as many as may be, when asked for"] = async ({ PAGES, LIMITS }) => {
  const page = await PAGES.list({ limit: LIMITS.list });
  equal([page.keys.length, page.keys[0].name, page.list_complete], [LIMITS.list, "a/0000", false]);
};
cases["list: one more than may be"] = async ({ PAGES, LIMITS }) => {
  await throws(() => PAGES.list({ limit: LIMITS.list + 1 }), `KV GET failed: 400 Invalid key_count_limit of ${LIMITS.list + 1}. Please specify an integer less than ${LIMITS.list}.`);
};
cases["list: a page that has just all"] = async ({ PAGES, LIMITS }) => {
  const page = await PAGES.list({ prefix: "a/", limit: LIMITS.list });
  equal([page.keys.length, page.list_complete, page.cursor], [LIMITS.list, true, undefined]);
};
cases["list: a limit of 0, and below"] = async ({ PAGES, LIMITS }) => {
  for (const limit of [0, -1]) equal((await PAGES.list({ limit })).keys.length, LIMITS.list);
};
cases["list: what is no cursor"] = async ({ PAGES }) => {
  const { cursor } = await PAGES.list({ limit: 1 });
  for (const bad of ["x", cursor.slice(1), cursor.slice(0, -1), cursor + "A", "x".repeat(5000)]) {
    await throws(() => PAGES.list({ cursor: bad }), "KV GET failed: 400 Invalid cursor. Please use the cursor of the previous page, or none to begin anew.");
  }
};
cases["list: goes on after a key that is gone"] = async ({ KV }) => {
  for (const k of ["1", "2", "3"]) await KV.put(`gone/${k}`, "v");
  const { cursor } = await KV.list({ prefix: "gone/", limit: 2 });
  await KV.delete("gone/2");
  equal(names(await KV.list({ prefix: "gone/", cursor })), ["gone/3"]);
};

// --- what is near

cases["near: read your write"] = async ({ KV }) => {
  await KV.delete("own");
  for (let i = 0; i < 20; i++) {
    await KV.put("own", `${i}`);
    equal([await KV.get("own", { cacheTtl: 3600 }), (await KV.get(["own"])).get("own"), names(await KV.list({ prefix: "own" }))], [`${i}`, `${i}`, ["own"]]);
    if (i % 5 === 0) { await KV.delete("own"); equal(await KV.get("own", { cacheTtl: 3600 }), null); }
  }
};
cases["near: read your write after an absence was kept"] = async ({ KV }) => {
  for (let i = 0; i < 3; i++) equal(await KV.get("near/late"), null);
  await KV.put("near/late", "v");
  equal(await KV.get("near/late"), "v");
  await KV.delete("near/late");
};
cases["near: cacheStatus of what was not near, and is"] = async ({ KV, FAR }) => {
  await FAR.put("near/far", "1");
  const first = await KV.getWithMetadata("near/far"), second = await KV.getWithMetadata("near/far");
  equal([first.value, first.cacheStatus, second.value, second.cacheStatus], ["1", "MISS", "1", "HIT"]);
};
cases["near: a copy is as old as its reader allows, and says HIT"] = async ({ KV, FAR }) => {
  await FAR.put("near/old", "1");
  await KV.get("near/old");
  await FAR.put("near/old", "2");
  const r = await KV.getWithMetadata("near/old", { cacheTtl: 3600 });
  equal([r.value, r.cacheStatus], ["1", "HIT"]);
};
cases["near: cacheStatus of what was written here"] = async ({ KV }) => {
  await KV.put("near/own", "v");
  equal((await KV.getWithMetadata("near/own", { cacheTtl: 3600 })).cacheStatus, "HIT");
};
cases["near: cacheStatus of what is not there"] = async ({ KV }) => {
  equal([(await KV.getWithMetadata("near/never")).cacheStatus, (await KV.getWithMetadata("near/never")).cacheStatus], ["MISS", "HIT"]);
};
cases["near: a listing comes from no cache"] = async ({ KV, FAR }) => {
  await FAR.put("near/listed", "v");
  const page = await KV.list({ prefix: "near/listed" });
  equal([names(page), page.cacheStatus], [["near/listed"], null]);
};

// --- who may do what, and how much

cases["another namespace"] = async ({ KV, OTHER }) => {
  await KV.put("apart", "one");
  equal([await OTHER.get("apart"), names(await OTHER.list({ prefix: "apart" }))], [null, []]);
  await OTHER.put("apart", "two");
  equal([await KV.get("apart"), await OTHER.get("apart")], ["one", "two"]);
  await OTHER.delete("apart");
  equal(await KV.get("apart"), "one");
};
cases["a token that is not known"] = async ({ KV, FORGED }) => {
  await KV.put("apart", "one");
  await throws(() => FORGED.get("apart"), "KV GET failed: 403 Forbidden");
  await throws(() => FORGED.get(["apart"]), "KV GET_BULK failed: 403 Forbidden");
  await throws(() => FORGED.list(), "KV GET failed: 403 Forbidden");
  await throws(() => FORGED.put("apart", "two"), "KV PUT failed: 403 Forbidden");
  await throws(() => FORGED.delete("apart"), "KV DELETE failed: 403 Forbidden");
  equal(await KV.get("apart"), "one");
};
cases["1,000 operations, and one more of each"] = async ({ SPENT }) => {
  await SPENT.put("k", "v");
  await SPENT.delete("none");
  await SPENT.list();
  await SPENT.get(["a", "b", "c", "k"]);
  try { await SPENT.get("k", { cacheTtl: 0 }); } catch { /* what is refused counts */ }
  for (let left = 995; left > 0; left -= 199) equal(await Promise.all(range(199, () => SPENT.get("k"))), range(199, () => "v"));
  const text = "failed: 429 Too many API requests by single Worker invocation.";
  await throws(() => SPENT.get("k"), `KV GET ${text}`);
  await throws(() => SPENT.get(["k"]), `KV GET_BULK ${text}`);
  await throws(() => SPENT.list(), `KV GET ${text}`);
  await throws(() => SPENT.put("k", "w"), `KV PUT ${text}`);
  await throws(() => SPENT.delete("k"), `KV DELETE ${text}`);
};
cases["200 at once"] = async ({ KV }) => {
  await Promise.all(range(200, (i) => KV.put(`many/${i}`, `${i}`)));
  equal(await Promise.all(range(200, (i) => KV.get(`many/${i}`))), range(200, (i) => `${i}`));
};

// --- connections that are dropped

const lost = "Network connection lost.";
cases["dropped: before it was asked"] = async ({ KV, CUT }) => {
  await KV.put("cut-before", "old");
  await throws(() => CUT.get("cut-before"), lost);
  await throws(() => CUT.put("cut-before", "new"), lost);
  await throws(() => CUT.delete("cut-before"), lost);
  equal([await KV.get("cut-before"), await CUT.get("whole")], ["old", null]);
};
cases["dropped: when it was done, and not said so"] = async ({ KV, CUT }) => {
  await KV.put("cut-after", "old");
  await throws(() => CUT.put("cut-after", "new"), lost);
  equal(await KV.get("cut-after"), "new");
  await throws(() => CUT.delete("cut-after"), lost);
  equal([await KV.get("cut-after"), await CUT.get("whole")], [null, null]);
};
cases["dropped: within the head of an answer"] = async ({ KV, CUT }) => {
  await KV.put("cut-head", "value");
  await throws(() => CUT.get("cut-head"), lost);
  equal(await CUT.get("whole"), null);
};
cases["dropped: within a value"] = async ({ KV, CUT }) => {
  await KV.put("cut-body", "x".repeat(900));
  await throws(() => CUT.get("cut-body"), lost);
  await throws(() => CUT.get("cut-body", "arrayBuffer"), lost);
  await throws(async () => new Response(await CUT.get("cut-body", "stream")).text(), lost);
  equal(await CUT.get("whole"), null);
};
cases["dropped: between two answers"] = async ({ CUT }) => {
  for (let i = 0; i < 5; i++) {
    await CUT.put("cut-idle", `${i}`);
    await new Promise((done) => setTimeout(done, 20));
    equal(await CUT.get("cut-idle"), `${i}`);
    await new Promise((done) => setTimeout(done, 20));
  }
};

// --- the other syntax

cases["service worker: the namespace is a global"] = async ({ SERVICE_WORKER }) => {
  equal(await (await SERVICE_WORKER.fetch("http://x/")).text(), "ok");
};

export default {
  async fetch(request, env) {
    const name = new URL(request.url).searchParams.get("case");
    if (name === null) return Response.json(Object.keys(cases).map((name) => ({ name, local: local.has(name) })));
    try {
      return Response.json({ skipped: await cases[name](env) });
    } catch (e) {
      return Response.json({ error: `${e.stack}` });
    }
  },
};
