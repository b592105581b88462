// Puts packages of npm into the CDN: compresses every file with brotli and gzip, and
// writes them with their hashes, many at once.
//
//     npm install kleur && node load.mjs node_modules/kleur
//
// It speaks to the API that 'nearkey env' names, or to Cloudflare's.

import { createHash } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { extname, join, relative, sep } from "node:path";
import { promisify } from "node:util";
import { brotliCompress, constants, gzip } from "node:zlib";

const MAX_PAIRS = 10_000; // of a bulk write
const MAX_BATCH = 50_000_000; // characters of base64; KV takes 100 MB in all
const NAMESPACES = { files: "cdn-files", hashes: "cdn-hashes" }; // as wrangler named them

/** @type {Record<string, string>} */
const TYPES = {
	".js": "text/javascript; charset=utf-8",
	".mjs": "text/javascript; charset=utf-8",
	".cjs": "text/javascript; charset=utf-8",
	".css": "text/css; charset=utf-8",
	".json": "application/json",
	".map": "application/json",
	".wasm": "application/wasm",
	".svg": "image/svg+xml",
	".woff2": "font/woff2",
	".html": "text/plain; charset=utf-8", // nobody's pages are shown under this name
	".md": "text/plain; charset=utf-8",
	".ts": "text/plain; charset=utf-8",
	".txt": "text/plain; charset=utf-8",
};

const CODINGS = [
	{ suffix: ".br", compress: (bytes) => promisify(brotliCompress)(bytes, { params: { [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length } }) },
	{ suffix: ".gz", compress: (bytes) => promisify(gzip)(bytes, { level: 9 }) },
];

const {
	CLOUDFLARE_API_BASE_URL: base = "https://api.cloudflare.com/client/v4",
	CLOUDFLARE_ACCOUNT_ID: account,
	CLOUDFLARE_API_TOKEN: token,
} = process.env;

async function call(method, path, body) {
	const response = await fetch(`${base}/accounts/${account}/storage/kv/namespaces${path}`, {
		method,
		headers: { Authorization: `Bearer ${token}`, ...(body && { "Content-Type": "application/json" }) },
		body,
	});
	if (!response.ok && response.status !== 404) {
		throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
	}
	return response;
}

async function namespaceIDs() {
	const ids = new Map();
	for (let page = 1, more = true; more; page++) {
		const { result } = await (await call("GET", `?per_page=100&page=${page}`)).json();
		result.forEach(({ id, title }) => ids.set(title, id));
		more = result.length === 100;
	}
	return Object.fromEntries(
		Object.entries(NAMESPACES).map(([name, title]) => {
			if (!ids.has(title)) {
				throw new Error(`there is no namespace ${title}: deploy the Worker first`);
			}
			return [name, ids.get(title)];
		}),
	);
}

// writer collects pairs and writes them in as few calls as the API allows.
function writer(namespace) {
	let pairs = [];
	let size = 0;
	const flush = async () => {
		const response = await call("PUT", `/${namespace}/bulk`, JSON.stringify(pairs));
		const { success, errors, result } = await response.json();
		if (!success || result?.unsuccessful_keys?.length > 0) {
			throw new Error(`not everything was written: ${JSON.stringify(errors ?? result)}`);
		}
		[pairs, size] = [[], 0];
	};
	return {
		async add(key, value, metadata) {
			const pair = { key, value: value.toString("base64"), base64: true, metadata };
			if (pairs.length === MAX_PAIRS || (pairs.length > 0 && size + pair.value.length > MAX_BATCH)) {
				await flush();
			}
			pairs.push(pair);
			size += pair.value.length;
		},
		end: () => (pairs.length > 0 ? flush() : undefined),
	};
}

async function filesOf(folder) {
	const all = await readdir(folder, { recursive: true, withFileTypes: true });
	return all
		.filter((entry) => entry.isFile())
		.map((entry) => relative(folder, join(entry.parentPath ?? entry.path, entry.name)).split(sep).join("/"))
		.filter((path) => !path.split("/").includes("node_modules"))
		.sort();
}

async function load(folder, ids) {
	const { name, version } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
	const library = `${name}@${version}`;
	const contents = await Promise.all((await filesOf(folder)).map(async (path) => ({ path, bytes: await readFile(join(folder, path)) })));
	const hashes = JSON.stringify(
		Object.fromEntries(contents.map(({ path, bytes }) => [path, `sha512-${createHash("sha512").update(bytes).digest("base64")}`])),
	);
	const before = await call("GET", `/${ids.hashes}/values/${encodeURIComponent(library)}`);
	if (before.ok && (await before.text()) !== hashes) {
		throw new Error(`${library} is there with other files, and browsers keep those for a year`);
	}
	const files = writer(ids.files);
	for (const { path, bytes } of contents) {
		const about = {
			type: TYPES[extname(path).toLowerCase()] ?? "application/octet-stream",
			etag: createHash("sha256").update(bytes).digest("hex").slice(0, 32),
			modified: (await stat(join(folder, path))).mtime.toUTCString(),
			size: bytes.length,
		};
		for (const { suffix, compress } of CODINGS) {
			const value = await compress(bytes);
			await files.add(`${library}/${path}${suffix}`, value, { ...about, bytes: value.length });
		}
	}
	await files.end();
	const index = writer(ids.hashes); // last: what is listed is there
	await index.add(library, Buffer.from(hashes));
	await index.end();
	console.log(`${library}: ${contents.length} files`);
}

const folders = process.argv.slice(2);
const ids = await namespaceIDs();
for (const folder of folders) {
	await load(folder, ids);
}
