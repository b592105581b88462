// A CDN of the files of libraries: GET /NAME@VERSION/PATH.
//
// A file is there twice, compressed as well as it can be, under its path with .br and
// .gz at the end; what a browser is told about it is the metadata of both. HASHES has
// a record for each NAME@VERSION: all its files, with what to write into the
// attribute integrity of a script: {"dist/index.js": "sha512-…"}.
//
// A version never changes, so all of it may be kept for as long as anybody likes.

/**
 * @typedef {{ FILES: KVNamespace, HASHES: KVNamespace }} Env
 * @typedef {{ type: string, etag: string, modified: string, bytes: number, size: number }} About
 *     bytes: of the value; size: of the file
 * @typedef {"br" | "gzip"} Coding
 */

const CACHE_SECONDS = 365 * 24 * 3600;
const FOREVER = `public, max-age=${CACHE_SECONDS}, immutable`;
const MAX_KEY_BYTES = 512; // of KV

/** The codings that are stored, the better first, and how their keys end. */
const SUFFIX = { br: ".br", gzip: ".gz" };

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		if (request.method !== "GET" && request.method !== "HEAD") {
			return new Response("Files are read here.\n", { status: 405, headers: { Allow: "GET, HEAD" } });
		}
		const [, library, path] = decode(new URL(request.url).pathname).match(/^\/((?:@[\w.-]+\/)?[\w.-]+@[\w.+-]+)\/(.*)$/s) ?? [];
		if (!library) {
			return notFound();
		}
		return path === "" ? listing(library, env) : file(request, `${library}/${path}`, env);
	},
};

/**
 * @param {string} library
 * @param {Env} env
 */
async function listing(library, env) {
	const hashes = await env.HASHES.get(library, { type: "stream", cacheTtl: CACHE_SECONDS });
	if (!hashes) {
		return notFound();
	}
	return new Response(hashes, {
		headers: { "Content-Type": "application/json", "Cache-Control": FOREVER, "Access-Control-Allow-Origin": "*" },
	});
}

/**
 * @param {Request} request
 * @param {string} name
 * @param {Env} env
 */
async function file(request, name, env) {
	// Cloudflare asks for all codings itself, and says in cf what the browser takes.
	const accepted = String(request.cf?.clientAcceptEncoding ?? request.headers.get("Accept-Encoding") ?? "");
	const coding = choose(accepted);
	const key = name + SUFFIX[coding ?? "gzip"];
	if (new TextEncoder().encode(key).length > MAX_KEY_BYTES) {
		return notFound();
	}
	const { value, metadata } = await env.FILES.getWithMetadata(key, { type: "stream", cacheTtl: CACHE_SECONDS });
	if (value === null) {
		return notFound();
	}
	const { type, etag, modified, bytes, size } = /** @type {About} */ (metadata);
	const headers = new Headers({
		ETag: `"${etag}-${coding ?? "identity"}"`, // other bytes, another tag
		"Last-Modified": modified,
		"Cache-Control": FOREVER,
		Vary: "Accept-Encoding",
		"Access-Control-Allow-Origin": "*", // integrity is checked of what may be read
		"Timing-Allow-Origin": "*",
		"X-Content-Type-Options": "nosniff",
	});
	if (unchanged(request.headers, headers)) {
		await value.cancel();
		return new Response(null, { status: 304, headers });
	}
	headers.set("Content-Type", type);
	if (coding) {
		headers.set("Content-Encoding", coding);
	}
	const length = coding ? bytes : size;
	if (request.method === "HEAD") {
		await value.cancel();
		headers.set("Content-Length", String(length));
		return new Response(null, { headers, encodeBody: "manual" });
	}
	const { readable, writable } = new FixedLengthStream(length);
	const body = coding ? value : value.pipeThrough(new DecompressionStream("gzip"));
	body.pipeTo(writable).catch((error) => console.error(`${name}: ${error}`)); // the browser went away
	// The value is compressed already, and goes out as it is.
	return new Response(readable, { headers, encodeBody: "manual" });
}

/**
 * Does a client have what these headers describe? Tags count more than times.
 * @param {Headers} asked
 * @param {Headers} is
 */
function unchanged(asked, is) {
	const tags = asked.get("If-None-Match");
	if (tags !== null) {
		return tags.split(",").some((tag) => ["*", is.get("ETag")].includes(tag.trim().replace(/^W\//, "")));
	}
	return Date.parse(asked.get("If-Modified-Since") ?? "") >= Date.parse(is.get("Last-Modified") ?? "");
}

/**
 * The stored coding that a client likes best, or null if it takes neither.
 * @param {string} header
 * @returns {Coding | null}
 */
function choose(header) {
	/** @type {Record<string, number>} */
	const quality = {};
	for (const part of header.toLowerCase().split(",")) {
		const [, name, q = "1"] = part.match(/^\s*([\w*-]+)\s*(?:;\s*q=([\d.]+))?\s*$/) ?? [];
		if (name) {
			quality[name === "x-gzip" ? "gzip" : name] = Number(q);
		}
	}
	/** @type {Coding | null} */
	let best = null;
	let most = 0;
	for (const coding of /** @type {Coding[]} */ (Object.keys(SUFFIX))) {
		const q = quality[coding] ?? quality["*"] ?? 0;
		if (q > most) {
			[best, most] = [coding, q];
		}
	}
	return best;
}

/** @param {string} path */
function decode(path) {
	try {
		return decodeURIComponent(path);
	} catch {
		return ""; // a lone percent sign
	}
}

function notFound() {
	return new Response("There is no such file.\n", { status: 404, headers: { "Cache-Control": "max-age=60", "Access-Control-Allow-Origin": "*" } });
}
