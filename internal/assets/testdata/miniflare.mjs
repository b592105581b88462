// Asks Miniflare what static assets answer and prints it, for answers.json:
// node miniflare.mjs ../../../test/compat/node_modules/miniflare/dist/src/index.js >answers.json
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const { Miniflare } = await import(pathToFileURL(resolve(process.argv[2])));

const pages = ["/index.html", "/404.html", "/about.html", "/dir/index.html", "/both.html", "/both/index.html", "/plain", "/data.json",
  "/folder/404.html", "/folder/page.html", "/sp ace.html", "/[b].html", "/a%5Bb.txt", "/ü.txt", "/bin/index", "/twin", "/twin.html", "/x/index.html", "/x.html/index.html"];
const paths = ["/", "/index", "/index.html", "/index/", "/about", "/about/", "/about.html", "/about/index", "/about/index.html", "/dir", "/dir/",
  "/dir/index", "/dir/index.html", "/dir.html", "/dir/index/", "/both", "/both/", "/both.html", "/both/index", "/both/index.html", "/plain", "/plain/", "/plain.html",
  "/data.json", "/data.json?a=b", "/about.html?a=b&c", "/missing", "/missing/", "/missing.html", "/folder/missing", "/folder/a/b/missing/", "/folder/page", "/folder",
  "/404", "/404.html", "/folder/404", "/sp%20ace", "/sp%20ace.html", "/[b]", "/%5Bb%5D", "/%5bb%5d", "/a%255Bb.txt", "/a%5Bb.txt", "/a[b.txt", "/%C3%BC.txt", "/%c3%bc.txt", "/%FC.txt", "/%zz",
  "/bin", "/bin/", "/bin/index", "/bin/index.html", "/twin", "/twin/", "/twin.html", "//about", "/dir//index.html", "//dir", "/a/../about", "/a/%2e%2E/about", "/./about", "/dir/..", "/dir/.",
  "/%61bout", "/about%2f", "/x", "/x/", "/x.html", "/x.html/", "/\\about", "/.html", "/index.html/", "/about;a", "/~a!*'()"];

const rules = {
  redirects: `# a comment
/old /new
/old-query /new?own=1
/old-hash /new#part   # another
/abs https://example.com/there?q=1
/moved /about 301
/see /about 303
/temporary /about 307
/permanent /about 308
/shown /about 200
/shown-none /nowhere 200
/shown-data /data.json 200
/spaced/%20x /un%20coded
bare /about
/blog/* /news/:splat
/user/:id/post/:post /u/:id?p=:post 301
/in/* /:splat
/out/* https://example.com/:splat?x=1 308
/rewrite/:name /:name.json 200
/two/*/and/* /never
/about.html /taken
/about/last /late`,
  headers: `/*
  X-All: everywhere
/about
  X-One: a
  X-One: b
  X-All: again
  ! ETag
/u/:name/*
  X-Name: :name and :splat
https://:sub.example.com/*
  X-Sub: :sub
/data.json
  Cache-Control: public, max-age=60
  Content-Type: text/x-own
# end
/secret/*
  ! Cache-Control
  X-All: third`,
};
const rulePaths = ["/old", "/old?q=2", "/old-query?q=2", "/old-query", "/old-hash?q=2", "/abs?z=3", "/abs", "/moved", "/see", "/temporary", "/permanent", "/shown", "/shown?x", "/shown-none", "/shown-data", "/spaced/%20x", "/bare",
  "/blog/a/b?c=d", "/blog/", "/blog", "/user/7/post/x%20y", "/user/7/post/x/y", "/in//example.com/x", "/in/http://x", "/out/a/b?c=d", "/rewrite/data", "/rewrite/none", "/two/1/and/2", "/about.html", "/about/last", "/about", "/u/me/x/y", "/data.json", "/secret/x", "/"];

const get = (url, path, method, headers) => new Promise((done, fail) => {
  const sent = request({ host: url.hostname, port: url.port, path, method, headers, agent: false }, (res) => {
    let body = "";
    res.on("data", (b) => { body += b; });
    res.on("end", () => done([res, body]));
  });
  sent.on("error", fail);
  sent.end();
});

const dir = mkdtempSync(join(tmpdir(), "assets-"));
const sites = [];
const ask = async (options, asked) => {
  writeFileSync(join(dir, "_redirects"), options.redirects ?? "");
  writeFileSync(join(dir, "_headers"), options.headers ?? "");
  const run = options.run_worker_first;
  const routerConfig = { has_user_worker: !!options.worker };
  if (Array.isArray(run)) {
    routerConfig.static_routing = { user_worker: run.filter((r) => r[0] === "/"), asset_worker: run.filter((r) => r[0] === "!").map((r) => r.slice(1)) };
  } else if (run) routerConfig.invoke_user_worker_ahead_of_assets = true;
  const mf = new Miniflare({
    modules: true, script: "export default { fetch: () => new Response('worker', { headers: { 'x-worker': 'yes' } }) }", compatibilityDate: "2026-01-01", compatibilityFlags: options.flags,
    assets: { workerName: "w", directory: dir, routerConfig, assetConfig: { html_handling: options.html, not_found_handling: options.notFound } },
  });
  const url = await mf.ready;
  const answers = [];
  for (const [path, method = "GET", headers = {}] of asked) {
    let [res, body] = await get(url, path, method, headers);
    if (res.headers["x-worker"]) body = "worker";
    const shown = { path, method, headers, status: res.statusCode, body };
    for (const name of ["location", "cache-control", "content-type", "x-all", "x-one", "x-name", "x-sub"]) {
      if (res.headers[name] !== undefined && body !== "worker") shown[name] = res.headers[name];
    }
    shown.etag = res.headers.etag !== undefined;
    answers.push(shown);
  }
  await mf.dispose();
  sites.push({ options, answers });
};

try {
  for (const page of pages) {
    mkdirSync(dirname(join(dir, page)), { recursive: true });
    writeFileSync(join(dir, page), page);
  }
  for (const html of ["auto-trailing-slash", "force-trailing-slash", "drop-trailing-slash", "none"]) {
    for (const notFound of ["none", "404-page", "single-page-application"]) await ask({ html, notFound }, paths.map((path) => [path]));
  }
  const methods = [["/about", "HEAD"], ["/about", "POST"], ["/missing", "POST"], ["/about.html", "PUT"], ["/old", "POST"], ["/about", "GET", { range: "bytes=0-1" }], ["/about", "GET", { authorization: "x" }]];
  const hosts = [["/about", "GET", { host: "me.example.com" }], ["/about", "GET", { host: "a.b.example.com" }]];
  await ask({ ...rules, html: "auto-trailing-slash", notFound: "none" }, [...rulePaths.map((path) => [path]), ...methods, ...hosts]);
  await ask({ ...rules, html: "none", notFound: "404-page", worker: true }, [...rulePaths.map((path) => [path]), ...methods]);
  const some = ["/", "/about", "/about.html", "/missing", "/folder/missing", "/api/x", "/api/about", "/plain", "/shown-none"];
  const navigated = [...some.map((path) => [path]), ...some.map((path) => [path, "GET", { "sec-fetch-mode": "navigate" }]), ["/missing", "POST", { "sec-fetch-mode": "navigate" }], ["/missing", "POST"]];
  for (const notFound of ["none", "404-page", "single-page-application"]) {
    for (const run_worker_first of [false, true, ["/api/*", "/about", "!/api/about"], ["/*", "!/about*"]]) await ask({ worker: true, html: "auto-trailing-slash", notFound, run_worker_first }, navigated);
    await ask({ worker: true, html: "auto-trailing-slash", notFound, flags: ["assets_navigation_has_no_effect"] }, navigated);
  }
} finally {
  rmSync(dir, { recursive: true });
}
console.log(JSON.stringify({ pages, sites }).replaceAll('{"path"', '\n{"path"').replaceAll('{"options"', '\n{"options"'));
