// Runs the conformance Worker on Miniflare and prints a line for each case: its
// name and what is wrong, as JSON. Arguments: the module of Miniflare.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { Miniflare } = await import(pathToFileURL(process.argv[2]));
const limits = { value: 26214400, metadata: 1024, ttl: 60, cacheTtl: 30, list: 1000, bulk: 100, bulkBytes: 26214400 };
const worker = readFileSync(new URL("worker.mjs", import.meta.url), "utf8");
const fill = `
  export const fill = async ({ PAGES, LIMITS }) => {
    await PAGES.put("b", "");
    await Promise.all(range(LIMITS.list, (i) => PAGES.put("a/" + String(i).padStart(4, "0"), "")));
  };`;
const mf = new Miniflare({
  modules: [
    { type: "ESModule", path: "main.mjs", contents: 'import worker, { fill } from "./worker.mjs"; export default { fetch: async (request, env) => request.url.endsWith("/fill") ? new Response(await fill(env)) : worker.fetch(request, env) };' },
    { type: "ESModule", path: "worker.mjs", contents: worker + fill },
  ],
  compatibilityDate: "2026-04-01",
  kvNamespaces: { KV: "one", FAR: "one", CUT: "one", FORGED: "one", OTHER: "two", PAGES: "three", SPENT: "four" },
  bindings: { LIMITS: limits },
});
try {
  await mf.dispatchFetch("http://worker/fill");
  for (const { name } of await (await mf.dispatchFetch("http://worker/")).json()) {
    if (/^(1,000 operations|dropped|service worker)/.test(name)) continue; // nothing there for them
    const { error } = await (await mf.dispatchFetch(`http://worker/?case=${encodeURIComponent(name)}`)).json();
    console.log(JSON.stringify({ name, error: error ?? "" }));
  }
} finally {
  await mf.dispose();
}
