// Serves one Worker with Miniflare, whose KV holds one value, and prints where.
// Arguments: the module of Miniflare, the Worker's code, its compatibility date, the
// key and the value. MINIFLARE_WORKERD_PATH names the workerd.
import { pathToFileURL } from "node:url";

const [module, script, compatibilityDate, key, value] = process.argv.slice(2);
const { Miniflare } = await import(pathToFileURL(module));
const mf = new Miniflare({ modules: true, script, compatibilityDate, kvNamespaces: ["KV"], host: "127.0.0.1", port: 0 });
const url = await mf.ready;
await (await mf.getKVNamespace("KV")).put(key, value);
console.log(url.host);
